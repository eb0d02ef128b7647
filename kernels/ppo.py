"""The maths of PPO on the gated, whitened reward (§3.2.3): tensors of one batch of rollouts.

Legend: N responses, T tokens of all responses laid end to end, B scores. There is no padding:
response i holds `lengths[i]` tokens, one of them at least, its EOS included where it has one.

Results per token are not averaged, losses and statistics alike: a caller divides their sums by
the tokens of its global batch, so that how a batch is cut into micro-batches never shows.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.masking import masked_var

_GAE_BLOCK = 64
"""Tokens of a response per matrix product: 32 to 128 are equally fast at 512 x 1,024 tokens."""


# ------------------------------------------------------------------ the reward


def logit(probabilities: Float[Tensor, " B"], epsilon: float = 1e-6) -> Float[Tensor, " B"]:
    """log(p / (1 - p)), with p first clamped to [epsilon, 1 - epsilon]: at most ±13.8.

    Only for reward models that give probabilities. The paper's R̃ = whiten(logit(R)) takes the
    logit to undo R's final sigmoid; a score of this project is what stands before that sigmoid,
    so whiten(logit(R)) is whiten(score), with nothing lost to the clamp.
    """
    return torch.logit(probabilities, epsilon)


def safety_gate(
    safety: Float[Tensor, " B"], is_safety_prompt: Bool[Tensor, " B"], threshold: float = 0.15
) -> Bool[Tensor, " B"]:
    """Where the Safety RM gives the reward: safety prompts, and σ(safety) < threshold (§3.2.3).

    `safety`: the Safety RM's scores (logits); `threshold`: on the sigmoid's scale.
    Raises ValueError unless 0 < threshold < 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(
            f"The safety threshold is {threshold}. It is compared with a sigmoid: "
            "give a number between 0 and 1 (the paper's is 0.15)."
        )
    return is_safety_prompt | (safety < math.log(threshold / (1 - threshold)))


def gated_reward(
    helpfulness: Float[Tensor, " B"],
    safety: Float[Tensor, " B"],
    is_safety_prompt: Bool[Tensor, " B"],
    threshold: float = 0.15,
) -> Float[Tensor, " B"]:
    """R_c of §3.2.3, as a logit and before whitening: the safety score where `safety_gate` says
    so, the helpfulness score elsewhere.
    """
    return torch.where(safety_gate(safety, is_safety_prompt, threshold), safety, helpfulness)


@torch.no_grad()
def kl_shaped_rewards(
    score: Float[Tensor, " N"],
    logprobs: Float[Tensor, " T"],
    ref_logprobs: Float[Tensor, " T"],
    lengths: Sequence[int],
    beta: float,
    score_clip: float | None = None,
) -> Float[Tensor, " T"]:
    """-β (logprobs - ref_logprobs) at every token, plus the score on a response's last token.

    The KL term is the k1 estimator: signed per token, unbiased, and here part of the reward. As
    a loss it would be wrong, for the gradient of the sampled log-ratio is not that of the KL: so
    no gradient flows. `score`: one per response, whitened. `score_clip` bounds the score to
    ±score_clip and never the KL, which must be able to outweigh any score.
    """
    rewards = -beta * (logprobs - ref_logprobs)
    if score_clip is not None:
        score = score.clamp(-score_clip, score_clip)
    last = _lengths_tensor(lengths, rewards).cumsum(0) - 1
    rewards[last] += score
    return rewards


def sum_per_response(values: Float[Tensor, " T"], lengths: Sequence[int]) -> Float[Tensor, " N"]:
    """Sum of the token values of each response; of `logprobs - ref_logprobs`, its KL in nats."""
    counts = _lengths_tensor(lengths, values)
    # unsafe: without the check of the lengths, which are checked, and which fails for none
    return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True)


# ------------------------------------------------------------------ advantages


class Advantages(NamedTuple):
    """Per token: the advantage, and the return that the value model is to learn."""

    advantages: Float[Tensor, " T"]
    returns: Float[Tensor, " T"]


@torch.no_grad()
def gae(
    rewards: Float[Tensor, " T"],
    values: Float[Tensor, " T"],
    lengths: Sequence[int],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016) within each response.

        δ_t = r_t + γ v_{t+1} - v_t        A_t = δ_t + γλ A_{t+1}        return_t = A_t + v_t

    Past a response's last token both v and A are 0, also where the response was cut off at the
    length limit: the value there would be that of a text which is never written nor scored, and
    the score, which is all the reward there is, has already been given on the last token. What
    an unfinished response should score is the caller's to decide.

    Blocks of tokens are one matrix product each (14 times as fast as a loop over time).
    """
    ends = _lengths_tensor(lengths, values).cumsum(0)
    next_values = values.roll(-1)
    next_values[ends - 1] = 0
    deltas = rewards + gamma * next_values - values
    width = max(lengths, default=0)
    cells = _cells(ends, width, len(values))
    rectangle = deltas.new_zeros(len(lengths) * width)
    rectangle[cells] = deltas
    sums = _discounted_sums(rectangle.view(len(lengths), width), gamma * lam)
    advantages = sums.flatten()[cells]
    return Advantages(advantages, advantages + values)


def _discounted_sums(deltas: Float[Tensor, "N L"], discount: float) -> Float[Tensor, "N L"]:
    """sum over k >= 0 of discount^k · deltas[:, t + k], from the last block of columns back."""
    block = _GAE_BLOCK
    steps = torch.arange(block, device=deltas.device)
    distance = steps[:, None] - steps[None, :]  # of the token read (row) past the one written
    weights = torch.where(distance >= 0, discount ** distance.clamp(min=0).to(deltas.dtype), 0)
    carry_weights = discount ** (block - steps).to(deltas.dtype)
    sums = torch.empty_like(deltas)
    carry = deltas.new_zeros(len(deltas), 1)
    for end in range(deltas.shape[1], 0, -block):
        width = min(block, end)  # the first columns may be fewer than a block
        columns = slice(end - width, end)
        sums[:, columns] = deltas[:, columns] @ weights[:width, :width]
        sums[:, columns] += carry * carry_weights[block - width :]
        carry = sums[:, end - width, None]
    return sums


def _lengths_tensor(lengths: Sequence[int], like: Tensor) -> Int[Tensor, " N"]:
    """The lengths on `like`'s device; they must cover its tokens, with one token at least each."""
    assert sum(lengths) == len(like), f"lengths sum to {sum(lengths)}, tokens are {len(like)}"
    assert min(lengths, default=1) >= 1, "a response without tokens has nowhere to put its score"
    return torch.tensor(lengths, dtype=torch.int64, device=like.device)


def _cells(ends: Int[Tensor, " N"], width: int, num_tokens: int) -> Int[Tensor, " T"]:
    """Each token's place in a [response, time] rectangle of this width, rows one after another."""
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    empty_before = torch.arange(len(ends), device=ends.device) * width - (ends - lengths)
    shift = torch.repeat_interleave(empty_before, lengths, output_size=num_tokens)
    return torch.arange(num_tokens, device=ends.device) + shift


# ------------------------------------------------------------------ losses


class PolicyLoss(NamedTuple):
    """Per token: the loss to differentiate, and statistics that carry no gradient."""

    loss: Float[Tensor, " T"]
    is_clipped: Bool[Tensor, " T"]
    """Where the clip took the gradient away."""
    approx_kl: Float[Tensor, " T"]
    """KL(old ‖ new) by the k3 estimator, (ratio - 1) - log ratio: unbiased, never negative."""


def policy_loss(
    logprobs: Float[Tensor, " T"],
    old_logprobs: Float[Tensor, " T"],
    advantages: Float[Tensor, " T"],
    clip: float = 0.2,
) -> PolicyLoss:
    """max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip)), ratio = exp(logprobs - old_logprobs).

    `old_logprobs` are those of the policy that sampled the tokens, at the sampling temperature;
    they and `advantages` are constants.
    """
    log_ratio = logprobs - old_logprobs.detach()
    ratio = log_ratio.exp()
    unclipped = -advantages.detach() * ratio
    clipped = -advantages.detach() * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        approx_kl = torch.expm1(log_ratio) - log_ratio
    return PolicyLoss(torch.maximum(unclipped, clipped), clipped > unclipped, approx_kl)


class ValueLoss(NamedTuple):
    """Per token: the loss to differentiate, and where the clip took its gradient away."""

    loss: Float[Tensor, " T"]
    is_clipped: Bool[Tensor, " T"]


def value_loss(
    values: Float[Tensor, " T"],
    old_values: Float[Tensor, " T"],
    returns: Float[Tensor, " T"],
    clip: float = 0.2,
) -> ValueLoss:
    """½ max((v - R)², (clamp(v, v_old ± clip) - R)²): values move at most `clip` a batch."""
    old_values, returns = old_values.detach(), returns.detach()
    near_old = torch.clamp(values, old_values - clip, old_values + clip)
    unclipped = (values - returns).square()
    clipped = (near_old - returns).square()
    return ValueLoss(0.5 * torch.maximum(unclipped, clipped), clipped > unclipped)


def explained_variance(
    values: Float[Tensor, " T"],
    returns: Float[Tensor, " T"],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one.

    0 where the returns do not vary. `group`: over the ranks of a process group; all must call.
    """
    everything = torch.ones_like(returns, dtype=torch.bool)
    total = masked_var(returns, everything, group)
    unexplained = masked_var(returns - values, everything, group)
    return torch.where(total > 0, 1 - unexplained / total, 0)


# ------------------------------------------------------------------ β


@dataclass
class AdaptiveKL:
    """Moves β to hold the KL at a target (Ziegler et al. 2019, §2.2). Llama 2's β is constant.

    `AdaptiveKL(**state)` goes on where `state = controller.state_dict()` was taken.
    """

    beta: float
    target: float
    """KL per response to hold, in nats."""
    horizon: int = 10_000
    """Responses over which a KL 20 % off the target moves β by about 20 %."""

    def update(self, kl: float, num_responses: int) -> None:
        """Take in the mean KL per response, over all ranks, of `num_responses` responses."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * num_responses / self.horizon

    def state_dict(self) -> dict[str, float]:
        """Everything needed to go on after a restart."""
        return asdict(self)
