"""Rollouts of PPO: sampled responses and what the trainer's own models say of every token.

Ids are stored as they were sampled and never decoded and encoded again (trap 16). Everything per
token is flat over the batch's responses, in order: no padding, so no mask can be wrong.
Legend: N responses, T response tokens of the batch.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_contracts.parquet import write_table
from data_contracts.tables import CONTRACTS
from kernels.generation import Sampling
from kernels.model import CausalLM
from stages.models.batches import Example, LossBatch, by_token_budget, collate
from stages.models.prompts import Prompts
from stages.models.sampling import response_body, sample_responses
from stages.runtime.distributed import Rank
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer

MEASURING_TOKENS = 16_384
"""Tokens in one forward pass without gradients."""
NUM_SHOWN = 32
"""Responses in a table of samples: people read them."""


@dataclass(frozen=True)
class Trajectory:
    """One prompt and its response, as ids."""

    prompt: list[int]
    response: list[int]
    finished: bool
    prompt_id: str = ""
    """To name it where training fails."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and response."""
        return self.prompt + self.response

    @property
    def example(self) -> Example:
        """As a document whose loss is on the response, its EOS included."""
        mask = [False] * len(self.prompt) + [True] * len(self.response)
        return Example(self.tokens, mask)


@dataclass(frozen=True)
class Rollouts:
    """A batch of trajectories with what the update needs, on the CPU."""

    trajectories: list[Trajectory]
    lengths: list[int]
    """Tokens of each response."""
    logprobs: Tensor
    """(T,) of the sampled tokens under the policy that sampled them."""
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor
    """(N,) whitened rewards, without the KL term."""
    kl: Tensor
    """(N,) sum of log-ratios to the reference."""
    advantages: Tensor
    returns: Tensor

    def slices(self, indices: Sequence[int]) -> Tensor:
        """Positions in the flat tensors of the given responses' tokens, in that order."""
        ends = np.cumsum(self.lengths)
        pieces = [torch.arange(ends[i] - self.lengths[i], ends[i]) for i in indices]
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def sample_trajectories(
    model: CausalLM,
    prompts: Prompts,
    sampling: Sampling,
    tokenizer: Tokenizer,
    seed: int,
    work: WorkDir,
    batch_size: int,
) -> list[Trajectory]:
    """One response to each prompt, in order, on every rank; `batch_size` of them side by side."""
    samples = sample_responses(model, prompts.tokens, sampling, tokenizer, seed, work, batch_size)
    return [
        Trajectory(tokens, sample.tokens, sample.finished, row["prompt_id"])
        for row, tokens, sample in zip(prompts.rows, prompts.tokens, samples, strict=True)
    ]


def response_logprobs(
    model: Callable[..., Any], trajectories: Sequence[Trajectory], temperature: float, rank: Rank
) -> Tensor:
    """Log-probs (T,) of the response tokens at the sampling temperature (trap 3)."""

    def measure(flat: LossBatch) -> Tensor:
        return model(
            flat.tokens,
            flat.documents,
            flat.rows,
            flat.targets,
            temperature=temperature,
            mode="measure",
        )

    return per_token(measure, trajectories, rank)


def response_values(
    model: Callable[..., Tensor], trajectories: Sequence[Trajectory], rank: Rank
) -> Tensor:
    """Values (T,) of the states in which the response tokens were chosen."""
    return per_token(lambda b: model(b.tokens, b.documents, b.rows), trajectories, rank)


@torch.no_grad()
def per_token(
    measure: Callable[[LossBatch], Tensor], trajectories: Sequence[Trajectory], rank: Rank
) -> Tensor:
    """One number for every response token, flat (T,), on every rank.

    `measure` maps a micro-batch to one value per loss row. Ranks share the trajectories and run
    equally many forward passes.
    """
    mine = range(rank.index, len(trajectories), rank.world_size)
    batches = by_token_budget(mine, lambda i: len(trajectories[i].tokens), MEASURING_TOKENS)
    num_rounds = max(rank.gather_objects(len(batches)))
    measured: dict[int, Tensor] = {}
    for round_index in range(num_rounds):
        batch = batches[round_index] if round_index < len(batches) else []
        values = measure(collate([trajectories[i].example for i in batch], rank.device))
        pieces = values.float().cpu().split([len(trajectories[i].response) for i in batch])
        measured.update(zip(batch, pieces, strict=True))
    merged = {i: v for shard in rank.gather_objects(measured) for i, v in shard.items()}
    return torch.cat([merged[i] for i in range(len(trajectories))])


def rollout_rows(
    iteration: int, prompts: Sequence[dict[str, Any]], rollouts: Rollouts
) -> list[dict[str, Any]]:
    """Rows of the rollouts table."""
    flat = (rollouts.logprobs, rollouts.ref_logprobs, rollouts.values)
    logprobs, ref_logprobs, values = ([p.tolist() for p in f.split(rollouts.lengths)] for f in flat)
    return [
        {
            "rollout_id": f"{iteration}-{i}",
            "iteration": iteration,
            "prompt_id": prompts[i]["prompt_id"],
            "domain": prompts[i]["domain"],
            "prompt_tokens": trajectory.prompt,
            "response_tokens": trajectory.response,
            "finished": trajectory.finished,
            "logprobs": logprobs[i],
            "ref_logprobs": ref_logprobs[i],
            "values": values[i],
            "score": float(rollouts.scores[i]),
            "kl": float(rollouts.kl[i]),
        }
        for i, trajectory in enumerate(rollouts.trajectories)
    ]


def sample_rows(
    prompts: Sequence[dict[str, Any]], rollouts: Rollouts, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The first responses of a batch as people read them, with what they were worth."""
    return [
        {
            "domain": prompts[i]["domain"],
            "prompt": tokenizer.decode(trajectory.prompt),
            "response": tokenizer.decode(response_body(trajectory.response, tokenizer.eos_id)),
            "finished": trajectory.finished,
            "whitened_score": float(rollouts.scores[i]),
            "kl": float(rollouts.kl[i]),
        }
        for i, trajectory in enumerate(rollouts.trajectories[:NUM_SHOWN])
    ]


def keep_rollouts(
    work: WorkDir, iteration: int, prompts: Sequence[dict[str, Any]], rollouts: Rollouts
) -> None:
    """Write an iteration's rollouts beside the checkpoints, so that a resumed run has them all."""
    if work.rank.is_main:
        _folder(work).mkdir(parents=True, exist_ok=True)
        rows = rollout_rows(iteration, prompts, rollouts)
        write_table(_file(work, iteration), rows, CONTRACTS["rollouts"])


def forget_rollouts_from(work: WorkDir, iteration: int) -> None:
    """Remove those of iterations that a resumed run makes again, or never comes to."""
    if work.rank.is_main:
        for path in _folder(work).glob("*.parquet"):
            if path >= _file(work, iteration):
                path.unlink()


def publish_rollouts(work: WorkDir) -> tuple[Path, str]:
    """All iterations' rollouts as one artifact."""
    folder = work.output("rollouts")
    if work.rank.is_main:
        for path in sorted(_folder(work).glob("*.parquet")):  # no half of a file that a kill left
            shutil.copy2(path, folder)
    return folder, CONTRACTS["rollouts"].kind


def _file(work: WorkDir, iteration: int) -> Path:
    return _folder(work) / f"iteration-{iteration:05d}.parquet"


def _folder(work: WorkDir) -> Path:
    return work.checkpoints / "rollouts"
