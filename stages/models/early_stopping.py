"""Early stopping of PPO on held-out prompts (§3.2.3), and the version that they liked best."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kernels.hf_layout import save_causal
from kernels.model import ModelConfig
from stages.models.folders import CHECKPOINT_KIND, special_ids
from stages.runtime.engine import Engine
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer


@dataclass
class EarlyStopping:
    """What is remembered from one held-out evaluation to the next; saved in every checkpoint."""

    best_iteration: int = -1
    best_objective: float = -math.inf
    num_without_best: int = 0
    """Evaluations since the best one."""
    baseline: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of the held-out reward by domain, before training."""

    def standardised(self, reward: Tensor, domains: Sequence[str]) -> Tensor:
        """Rewards (N,) in standard deviations of their domain above the model PPO started from.

        The first call sets that baseline.
        """
        standardised = torch.zeros_like(reward)
        for domain in sorted(set(domains)):
            is_own = torch.tensor([d == domain for d in domains])
            own = reward[is_own]
            mean, spread = self.baseline.setdefault(
                domain, (float(own.mean()), float(own.std(correction=0)) + 1e-6)
            )
            standardised[is_own] = (own - mean) / spread
        return standardised

    def observe(self, objective: float, iteration: int) -> bool:
        """Take in an evaluation; whether it is the best so far."""
        if objective > self.best_objective:
            self.best_objective, self.best_iteration = objective, iteration
            self.num_without_best = 0
            return True
        self.num_without_best += 1
        return False


def keep_best(
    work: WorkDir, policy: Engine, config: ModelConfig, tokenizer: Tokenizer, iteration: int
) -> None:
    """Write the policy's weights aside until the end of the run. All ranks call."""
    state = policy.full_state()
    if work.rank.is_main:
        folder = _folder(work, iteration)
        folder.mkdir(parents=True, exist_ok=True)
        save_causal(folder, config, state, **special_ids(tokenizer))
        tokenizer.copy_to(folder)


def publish_best(work: WorkDir, stopping: EarlyStopping) -> tuple[Path, str]:
    """The best version as the stage's model."""
    folder = work.output("model")
    if work.rank.is_main:
        shutil.copytree(_folder(work, stopping.best_iteration), folder, dirs_exist_ok=True)
    return folder, CHECKPOINT_KIND


def _folder(work: WorkDir, iteration: int) -> Path:
    return work.checkpoints / f"best-{iteration:05d}"
