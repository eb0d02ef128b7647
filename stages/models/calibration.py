"""Whether a reward model's numbers mean what they say: calibration, the gate, and length bias.

A score is a logit. The difference of two gives the chance that people prefer one response to the
other (Figure 29 asks whether that agrees with them); a Safety RM's score alone gives the chance
that a response is safe, which PPO's gate compares with 0.15 (§3.2.3).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kernels.ppo import safety_gate
from stages.models.comparison import wilson_interval
from stages.models.pairs import Pair, PairScores, safety_targets

NUM_BINS = 10
"""Equally wide bins of the predicted probability."""
Event = Literal["preferred", "safe"]


def calibration_rows(
    reward_model: str, test_set: str, pairs: Sequence[Pair], scores: PairScores
) -> list[dict[str, Any]]:
    """Predicted against observed frequency by bin of the prediction, Wilson 95 % intervals.

    "preferred": σ(difference) of the side that the model likes better, so from 0.5 up, against how
    often people chose that side; a pair is one item whichever side stands first. "safe": σ(score)
    of every labelled side against its label, for a Safety RM.
    """
    margins = scores.margins
    likes = torch.sigmoid(margins.abs())
    rows = _bins(reward_model, test_set, "preferred", likes, margins > 0)
    if reward_model == "safety":
        is_safe, labelled = safety_targets(pairs)
        says_safe = torch.sigmoid(torch.cat([scores.chosen, scores.rejected]))
        rows += _bins(reward_model, test_set, "safe", says_safe[labelled], is_safe[labelled])
    return rows


def calibration_error(rows: Sequence[dict[str, Any]], event: Event) -> float:
    """Expected calibration error: mean distance of prediction and frequency, by items."""
    own = [row for row in rows if row["event"] == event]
    gaps = [abs(row["predicted"] - row["observed"]) * row["num_items"] for row in own]
    return float(sum(gaps) / sum(row["num_items"] for row in own))


def gate_quality(pairs: Sequence[Pair], scores: PairScores, threshold: float) -> dict[str, float]:
    """Precision and recall of the gate at finding unsafe responses (the paper: 0.89 and 0.55).

    Nothing where no side is labelled; precision is left out when the gate never fires.
    """
    is_safe, labelled = safety_targets(pairs)
    if not labelled.any():
        return {}
    all_scores = torch.cat([scores.chosen, scores.rejected])[labelled]
    unsafe = ~is_safe[labelled]
    fired = safety_gate(all_scores, torch.zeros_like(unsafe), threshold)
    caught = float((fired & unsafe).sum())
    quality = {"gate/fired_on_safe": float((fired & ~unsafe).sum() / (~unsafe).sum().clamp(min=1))}
    if fired.any():
        quality["gate/precision"] = caught / float(fired.sum())
    if unsafe.any():
        quality["gate/recall"] = caught / float(unsafe.sum())
    return quality


def length_bias(pairs: Sequence[Pair], scores: PairScores) -> dict[str, float]:
    """How far a reward model goes by length, beside how far people did.

    Over pairs of unequal length: how often the longer side scores higher, how often people chose
    it, and the correlation of the differences in score and in length. Nothing without such pairs.
    """
    gaps = np.array([len(p.chosen) - len(p.rejected) for p in pairs])
    unequal = gaps != 0
    if not unequal.any():
        return {}
    margins = scores.margins.numpy()[unequal]
    gaps = gaps[unequal]
    bias = {
        "length_bias/longer_scores_higher": float(np.mean(np.sign(margins) == np.sign(gaps))),
        "length_bias/longer_chosen": float(np.mean(gaps > 0)),
    }
    if len(gaps) > 1 and gaps.std() > 0 and margins.std() > 0:
        bias["length_bias/correlation"] = float(np.corrcoef(margins, gaps)[0, 1])
    return bias


def _bins(
    reward_model: str, test_set: str, event: Event, predicted: Tensor, happened: Tensor
) -> list[dict[str, Any]]:
    predicted = predicted.double()  # in single precision 0.7 - 1e-8 times 10 would be 7
    places = (predicted * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    rows = []
    for place in range(NUM_BINS):
        inside = places == place
        num_items = int(inside.sum())
        if num_items == 0:
            continue
        num_happened = float(happened[inside].sum())
        low, high = wilson_interval(num_happened, num_items)
        rows.append(
            {
                "calibration_id": f"{reward_model}:{test_set}:{event}:{place}",
                "reward_model": reward_model,
                "test_set": test_set,
                "event": event,
                "bin_low": place / NUM_BINS,
                "bin_high": (place + 1) / NUM_BINS,
                "num_items": num_items,
                "predicted": float(predicted[inside].mean()),
                "observed": num_happened / num_items,
                "low": low,
                "high": high,
            }
        )
    return rows
