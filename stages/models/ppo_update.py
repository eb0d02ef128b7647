"""PPO's update: one pass over a batch of rollouts, a gradient step on each mini-batch (§3.2.3)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_contracts.base import Contract
from kernels.ppo import explained_variance, policy_loss, value_loss
from stages.models.batches import LossBatch, collate, share_of_rank
from stages.models.rollouts import Rollouts
from stages.models.sampling import PositiveTemperature
from stages.runtime.distributed import Rank
from stages.runtime.engine import Engine

BIASED_SAMPLING = frozenset({
    "bad_words", "bad_words_ids", "begin_suppress_tokens", "do_sample", "epsilon_cutoff",
    "eta_cutoff", "exponential_decay_length_penalty", "forced_eos_token_id", "frequency_penalty",
    "ignore_eos", "length_penalty", "logit_bias", "logits_processors", "min_length",
    "min_new_tokens", "min_p", "min_tokens", "no_repeat_ngram_size", "num_beams",
    "presence_penalty", "repetition_penalty", "sequence_bias", "suppress_tokens", "tfs", "top_a",
    "top_k", "top_p", "typical_p",
})  # fmt: skip
"""Settings of other generators. Each would change the distribution that responses are drawn from,
and none would be in the log-probs, so that the KL can even become negative."""


class UpdateSettings(Contract):
    """The paper's settings of the update."""

    mini_batch_size: int = Field(default=64, gt=0)
    """Responses per optimizer step, over all ranks; one gradient step on each mini-batch."""
    micro_batch_size: int = Field(default=8, gt=0, json_schema_extra={"in_key": False})
    """Responses per forward pass and rank."""
    temperature: PositiveTemperature = 1.0
    """Of sampling, and of every log-prob (trap 3)."""
    clip: float = Field(default=0.2, gt=0)
    """PPO's clip of the policy ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Most that a value may move in one batch, in units of the whitened reward."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_biased_sampling(cls, values: Any) -> Any:
        named = values if isinstance(values, Mapping) else ()
        if found := sorted(BIASED_SAMPLING.intersection(named)):
            raise ValueError(
                f"sampling with {', '.join(found)} is refused: PPO's ratio and KL hold for "
                "responses drawn from the whole distribution (trap 9). Leave it out; temperature "
                "is applied to sampling and log-probs alike"
            )
        return values


def update(
    settings: UpdateSettings,
    policy: Engine | None,
    value: Engine,
    rollouts: Rollouts,
    order: Sequence[int],
    rank: Rank,
) -> dict[str, float]:
    """Go through the responses in this order; metrics are means over the mini-batches.

    Without `policy` the value model trains alone.
    """
    size = settings.mini_batch_size
    num_mini_batches = math.ceil(len(order) / size)
    totals: dict[str, float] = {}
    for m in range(num_mini_batches):
        mini_batch = order[m * size : (m + 1) * size]
        stats = mini_batch_step(settings, policy, value, rollouts, mini_batch, rank)
        for name, number in stats.items():
            totals[name] = totals.get(name, 0.0) + number / num_mini_batches
    explained = explained_variance(rollouts.values, rollouts.returns)
    skipped = value.last_step.num_skipped + (policy.last_step.num_skipped if policy else 0)
    return totals | {"ppo/explained_variance": float(explained), "ppo/skipped_steps": skipped}


def mini_batch_step(
    settings: UpdateSettings,
    policy: Engine | None,
    value: Engine,
    rollouts: Rollouts,
    indices: Sequence[int],
    rank: Rank,
) -> dict[str, float]:
    """One gradient step; losses are means over the response tokens of the whole mini-batch."""
    num_tokens = sum(rollouts.lengths[i] for i in indices)
    micro_batches = share_of_rank(indices, rank, settings.micro_batch_size)
    sums: dict[str, Tensor] = {}
    for i, micro_batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        flat = collate([rollouts.trajectories[j].example for j in micro_batch], rank.device)
        old = rollouts.slices(micro_batch)
        ids = [rollouts.trajectories[j].prompt_id for j in micro_batch]
        if policy is not None:
            loss, stats = policy_losses(settings, policy, flat, rollouts, old, num_tokens)
            policy.backward(loss, last, ids)
            _add(sums, stats)
        loss, stats = value_losses(settings, value, flat, rollouts, old, num_tokens)
        value.backward(loss, last, ids)
        _add(sums, stats)
    totals = rank.sum(torch.stack(list(sums.values()))).tolist()
    stats = dict(zip(sums, totals, strict=True))
    if policy is not None:
        stats["ppo/policy_gradient_norm"] = policy.step().gradient_norm
    return stats | {"ppo/value_gradient_norm": value.step().gradient_norm}


def policy_losses(
    settings: UpdateSettings,
    policy: Engine,
    flat: LossBatch,
    rollouts: Rollouts,
    old: Tensor,
    num_tokens: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy loss of one micro-batch and its metrics: shares of the mini-batch's.

    `old`: positions of its response tokens in the rollouts; `num_tokens`: of the mini-batch.
    """
    out = policy(
        flat.tokens,
        flat.documents,
        flat.rows,
        flat.targets,
        temperature=settings.temperature,
        mode="logprobs",
    )
    device = out.logprobs.device
    old_logprobs = rollouts.logprobs[old].to(device)
    advantages = rollouts.advantages[old].to(device)
    losses = policy_loss(out.logprobs, old_logprobs, advantages, settings.clip)
    loss = losses.loss.sum() / num_tokens
    return loss, {
        "ppo/policy_loss": loss.detach(),
        "ppo/policy_clip_fraction": losses.is_clipped.sum() / num_tokens,
        "ppo/approx_kl": losses.approx_kl.sum() / num_tokens,
        "ppo/entropy": out.entropy.detach().sum() / num_tokens,
    }


def value_losses(
    settings: UpdateSettings,
    value: Engine,
    flat: LossBatch,
    rollouts: Rollouts,
    old: Tensor,
    num_tokens: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped value loss of one micro-batch and its metrics, as `policy_losses`."""
    values = value(flat.tokens, flat.documents, flat.rows)
    device = values.device
    old_values, returns = rollouts.values[old].to(device), rollouts.returns[old].to(device)
    losses = value_loss(values, old_values, returns, settings.value_clip)
    loss = losses.loss.sum() / num_tokens
    return loss, {
        "ppo/value_loss": loss.detach(),
        "ppo/value_clip_fraction": losses.is_clipped.sum() / num_tokens,
    }


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value.double()
