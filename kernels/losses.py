"""Losses of the reward models (§3.2.2). Legend: P pairs of responses, S scored responses.

One loss per pair or response: the caller divides by the pairs of its global batch. Scores are
logits, the reward head's raw output; everything here is at least fp32 whatever their dtype.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def ranking_loss(
    chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], margin: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """-log σ(chosen - rejected - margin) for each pair (§3.2.2, equation 2), in nats.

    `chosen`, `rejected`: scores of the two responses; `margin`: Table 27's number for the pair's
    rating, 0 for none.
    """
    dtype = torch.promote_types(chosen.dtype, torch.float32)
    # Widened before the difference: in bf16 two scores near 8 are 0.06 apart or equal.
    return -F.logsigmoid(chosen.to(dtype) - rejected.to(dtype) - margin.to(dtype))


def safety_auxiliary_loss(
    scores: Float[Tensor, " S"],
    is_safe: Bool[Tensor, " S"],
    is_labelled: Bool[Tensor, " S"] | None = None,
) -> Float[Tensor, " S"]:
    """Binary cross-entropy of σ(score) against each response's safety label (A.3.3, Table 29).

    Without it the Safety RM only ranks, and a threshold on σ(score) such as the gate's 0.15 has
    no meaning. 0 where `is_labelled` is False, whatever score and label are there; None: all are
    labelled.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    losses = F.binary_cross_entropy_with_logits(
        scores.to(dtype), is_safe.to(dtype), reduction="none"
    )
    return losses if is_labelled is None else torch.where(is_labelled, losses, 0)
