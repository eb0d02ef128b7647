"""Scores on the level that the gate takes them for (§3.2.3).

A ranking loss leaves the level of the scores free, and the gate puts scores of two models side by
side: a Safety RM's below its threshold in place of a Helpfulness RM's. The auxiliary loss pins the
Safety RM's level down while training; this does so afterwards, as log-odds of being safe. Nothing
pins down the Helpfulness RM's. Where it lies far below 0, a response that the gate catches scores
more than a good one, and PPO learns to be caught; so an average response gets 0.

Neither changes a ranking. Scale and shift stand in a file beside the weights, which other programs
load without them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels.attention import Documents

FILE = "score_normalisation.json"
_NEWTON_STEPS = 50
_SMALLEST_STEP = 1e-9
"""Below it a loss that does not fall is at its lowest, up to rounding."""
_RIDGE = 1e-3
"""Pull of the scale towards 1, in responses: responses told apart without a mistake would make it
infinite."""


@dataclass(frozen=True)
class Normalisation:
    """What is made of a raw score: scale * score + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores of any shape."""
        return self.scale * scores + self.shift


def fit(scores: Tensor, is_safe: Tensor) -> Normalisation:
    """Platt scaling: the scale and shift under which σ(score) fits the labels (N,) best.

    Newton's method on two numbers, with steps halved until the loss falls: from where it starts, a
    whole one runs away when few labels are of one kind. Without responses of both kinds there is
    nothing to fit, and a scale that is not above 0 would turn the ranking around: then scores stay
    as they are.
    """
    if is_safe.all() or not is_safe.any():
        return Normalisation()
    raw = scores.double()
    mean, spread = raw.mean(), raw.std(correction=0) + 1e-9
    design = torch.stack([(raw - mean) / spread, torch.ones_like(raw)], dim=1)
    target = is_safe.double()
    prior = torch.stack([spread, torch.zeros_like(spread)])  # a scale of 1
    ridge = torch.diag(torch.tensor([_RIDGE * len(raw), 0.0], dtype=torch.float64))

    def loss(weights: Tensor) -> Tensor:
        logits, pull = design @ weights, weights - prior
        fit = binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return fit + pull @ ridge @ pull / 2

    weights = torch.stack([torch.zeros_like(mean), torch.logit(target.mean())])
    for _ in range(_NEWTON_STEPS):
        predicted = torch.sigmoid(design @ weights)
        gradient = design.T @ (predicted - target) + ridge @ (weights - prior)
        curvature = (predicted * (1 - predicted)).clamp(min=1e-6)
        hessian = design.T @ (curvature[:, None] * design) + ridge
        step = torch.linalg.solve(hessian, gradient)
        before = loss(weights)
        while step.abs().max() > _SMALLEST_STEP and loss(weights - step) > before:
            step = step / 2
        weights = weights - step
    scale = float(weights[0] / spread)
    shift = float(weights[1] - weights[0] * mean / spread)
    return Normalisation(scale, shift) if scale > 0 else Normalisation()


def centre(scores: Tensor) -> Normalisation:
    """The shift under which the mean of these scores (N,) is 0; the scale stays."""
    return Normalisation(shift=-float(scores.double().mean()))


def write(folder: Path, normalisation: Normalisation) -> None:
    """Beside the weights of a reward model."""
    (folder / FILE).write_text(json.dumps(asdict(normalisation)), encoding="utf-8")


def read(folder: Path) -> Normalisation:
    """A reward model's; scores stay as they are where there is none."""
    path = folder / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Normalisation(**found)


def normalised(
    model: Callable[[Tensor, Documents], Tensor], normalisation: Normalisation
) -> Callable[[Tensor, Documents], Tensor]:
    """A reward model whose scores are normalised."""
    return lambda tokens, documents: normalisation(model(tokens, documents))
