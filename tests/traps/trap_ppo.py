"""PPO's own functions on two-layer models, in this process and in float64."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plain_llama
import torch
from torch import Tensor, nn
from trap_models import EOS, ONE_RANK, causal_lm, random_ids, reward_model, value_model

from data_contracts.artifacts import ArtifactRef
from data_contracts.store import Store
from kernels.generation import Sampling, generate
from kernels.model import CausalLM
from stages import ppo
from stages.models.ppo_update import update
from stages.models.prompts import Prompts
from stages.models.rewards import RewardModels
from stages.models.rollouts import Rollouts, Trajectory, response_logprobs
from stages.runtime.clock import Clock
from stages.runtime.distributed import Rank, process_group
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings, StepStats, frozen
from stages.runtime.schedules import constant
from stages.runtime.stage import WorkDir
from stages.runtime.throughput import Meter
from stages.text.tokenizer import Tokenizer

PLAIN = EngineSettings()
NO_ARTIFACT = ArtifactRef(digest="0" * 64, kind="checkpoint")


class RememberingEngine(Engine):
    """The product's engine, which keeps the gradients of its newest step for a test to look at."""

    gradients: dict[str, Tensor]

    def step(self) -> StepStats:
        """As the engine's."""
        self.gradients = {
            name: parameter.grad.clone()
            for name, parameter in self.module.named_parameters()
            if parameter.grad is not None
        }
        return super().step()


def engine(
    module: nn.Module,
    learning_rate: float = 1e-2,
    rank: Rank | None = None,
    settings: EngineSettings = PLAIN,
) -> RememberingEngine:
    """An engine, by default of one rank; no weight decay, and clipping far away."""
    optimizer = OptimizerSettings(
        learning_rate=learning_rate, weight_decay=0.0, gradient_clipping=1e9
    )
    return RememberingEngine(
        module, optimizer, constant(learning_rate), settings, rank or process_group()
    )


def work_dir(folder: Path, rank: Rank = ONE_RANK) -> WorkDir:
    """Where a stage keeps its files."""
    attempt = folder / "work" / "key" / "attempt-1"
    attempt.mkdir(parents=True, exist_ok=True)
    return WorkDir(attempt, rank, Store.open(folder / "home"))


@dataclass
class Bench:
    """What `stages.ppo` works on."""

    config: ppo.Config
    work: WorkDir
    models: ppo.Models
    prompts: Prompts

    def roll_out(self, iteration: int = 0) -> Rollouts:
        """The responses of an iteration and what each of their tokens is worth."""
        return self.roll_out_with_stats(iteration)[0]

    def roll_out_with_stats(self, iteration: int = 0) -> tuple[Rollouts, dict[str, float]]:
        """And the metrics."""
        beta = self.config.kl_beta
        return ppo.roll_out(
            self.config, self.work, self.models, self.prompts, iteration, Clock(), beta
        )

    def sample(self, prompts: Prompts, seed: int) -> list[Trajectory]:
        """One response to each prompt."""
        return ppo.sample(self.config, self.work, self.models, prompts, seed, Clock())

    def update(
        self, rollouts: Rollouts, order: Sequence[int] | None = None, **settings: Any
    ) -> dict[str, float]:
        """One pass over the responses, by default in their order; the metrics."""
        config = self.config.model_copy(update=settings)
        order = range(len(rollouts.trajectories)) if order is None else order
        policy, value = self.models.policy, self.models.value
        return update(config, policy, value, rollouts, order, self.work.rank)


def bench(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    rank: Rank | None = None,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> Bench:
    """Twelve prompts of 2 to 9 tokens in both domains; responses of 1 to 8, some of them cut off.

    The reference is another model than the policy, so that the KL is far from 0.
    """
    rank = rank or process_group()
    config = ppo.Config.model_validate(SETTINGS | settings)
    policy = causal_lm(1, dtype=dtype, eos_logit=6)
    trained = {"learning_rate": 1e-2, "rank": rank, "settings": config.engine}
    models = ppo.Models(
        policy=engine(policy, **trained),
        value=engine(value_model(5, dtype=dtype), **trained),
        reference=frozen(causal_lm(2, dtype=dtype, eos_logit=6), config.engine, rank),
        rewards=RewardModels(
            *(frozen(reward_model(seed, dtype=dtype), config.engine, rank) for seed in (3, 4)),
            config.gate_threshold,
        ),
        config=policy.config,
        tokenizer=tokenizer,
    )
    return Bench(config, work_dir(folder, rank), models, prompts(12))


SETTINGS = {
    "policy": NO_ARTIFACT,
    "helpfulness_rm": NO_ARTIFACT,
    "safety_rm": NO_ARTIFACT,
    "prompts": NO_ARTIFACT,
    "max_new_tokens": 8,
    "batch_size": 12,
    "mini_batch_size": 12,
    "micro_batch_size": 5,
    "kl_beta": 0.1,
    "gamma": 0.9,
}


def prompts(num: int) -> Prompts:
    """Prompts of 2 to 9 tokens, every third of them for safety."""
    rows = [
        {"prompt_id": f"p{i}", "domain": "safety" if i % 3 == 2 else "helpfulness"}
        for i in range(num)
    ]
    return Prompts(rows, [[1, *random_ids(1 + 5 * i % 8, 100 + i)] for i in range(num)])


def many(prompts: Prompts, times: int) -> Prompts:
    """The same prompts over and over."""
    return Prompts(prompts.rows * times, prompts.tokens * times)


def split(flat: Tensor, rollouts: Rollouts) -> list[Tensor]:
    """A flat tensor of response tokens, response by response."""
    return list(flat.split(rollouts.lengths))


def plain_policy_gradients(
    model: CausalLM,
    rollouts: Rollouts,
    temperature: float = 1.0,
    indices: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Of the mean over the response tokens of -A log π, by parameter; the model stays as it is.

    `indices`: of these responses alone.
    """
    twin = copy.deepcopy(model)
    advantages = split(rollouts.advantages, rollouts)
    chosen = range(len(rollouts.lengths)) if indices is None else indices
    total = torch.zeros((), dtype=torch.float64)
    for i in chosen:
        trajectory = rollouts.trajectories[i]
        found = plain_llama.logprobs(twin, trajectory.prompt, trajectory.response, temperature)
        total = total - (found * advantages[i]).sum()
    (total / sum(rollouts.lengths[i] for i in chosen)).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


@torch.no_grad()
def plain_entropy(model: CausalLM, rollouts: Rollouts, temperature: float = 1.0) -> float:
    """Mean over all response tokens of the entropy of what each was drawn from."""
    total = 0.0
    for trajectory in rollouts.trajectories:
        rows = plain_llama.logits(model, trajectory.tokens)[len(trajectory.prompt) - 1 : -1]
        logprobs = (rows / temperature).log_softmax(-1)
        total -= (logprobs.exp() * logprobs).sum().item()
    return total / sum(rollouts.lengths)


def generator_and_trainer(ready: Bench, iteration: int) -> tuple[Tensor, Tensor]:
    """Log-probs of the same new responses by both, after one more iteration of PPO."""
    meter = Meter(ready.config.engine.precision, ready.work.rank)
    beta = ready.config.kl_beta
    ppo.iterate(ready.config, ready.work, ready.models, ready.prompts, meter, iteration, beta)
    sampling = Sampling(ready.config.max_new_tokens, ready.config.temperature)
    questions = ready.prompts.tokens
    with ready.models.policy.gathered() as sampler:
        out = generate(sampler, questions, sampling, eos_id=EOS, seed=iteration)
    trajectories = [
        Trajectory(*row) for row in zip(questions, out.responses, out.finished, strict=True)
    ]
    trained = response_logprobs(
        ready.models.policy, trajectories, sampling.temperature, ready.work.rank
    )
    return torch.tensor([x for row in out.logprobs for x in row]), trained
