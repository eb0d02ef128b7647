"""Proximal policy optimisation on the gated reward of two reward models (§3.2.3).

    rlhf stage ppo --recipe demo --version 2
    torchrun --nproc-per-node 8 -m stages.ppo --config ppo.json --home RLHF_HOME

Maximises R̃_c(g|p) − β · KL(π_θ ‖ π_0): the score is paid once, on the last token of the response,
the KL term at every token. π_0 is the rejection-sampling model that PPO starts from.
"""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.parquet import write_table
from data_contracts.tables import CONTRACTS
from kernels.generation import Sampling
from kernels.heads import ValueModel
from kernels.hf_layout import save_causal
from kernels.masking import whiten_by_group
from kernels.model import CausalLM
from kernels.ppo import (
    explained_variance,
    gae,
    kl_shaped_rewards,
    policy_loss,
    sum_per_response,
    value_loss,
)
from stages.models.batches import LossBatch, collate, seed_from, share_of_rank, shuffled
from stages.models.folders import CHECKPOINT_KIND, load_policy, load_scorer, special_ids
from stages.models.prompts import select_prompts
from stages.models.rewards import RewardModels
from stages.models.rollouts import Rollouts, Trajectory, per_token, rollout_rows
from stages.models.sampling import Overlong, fitting_prompts, sample_responses
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings, frozen
from stages.runtime.schedules import constant
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.text.tokenizer import Tokenizer

VERSION = "1"


class PpoSettings(Contract):
    """The paper's settings."""

    num_iterations: int = Field(default=400, gt=0)
    """At most; early stopping ends it sooner (the paper ran 200 to 400)."""
    num_prompts: dict[str, int] = {"helpfulness": 40_000, "safety": 10_000}
    """Training prompts to draw from; iterations go through them in a seeded order."""
    batch_size: int = Field(default=512, gt=0)
    """Responses per iteration, over all ranks."""
    mini_batch_size: int = Field(default=64, gt=0)
    """Responses per optimizer step, over all ranks; one gradient step on each mini-batch."""
    micro_batch_size: int = Field(default=8, gt=0, json_schema_extra={"in_key": False})
    """Responses per forward pass and rank."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=1024, gt=0)
    learning_rate: float = Field(default=1e-6, gt=0)
    """Constant."""
    value_learning_rate: float = Field(default=1e-6, gt=0)
    num_value_warmup_iterations: int = Field(default=0, ge=0)
    """First iterations that train the value model alone: its head starts as a reward head."""
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    clip: float = Field(default=0.2, gt=0)
    """PPO's clip of the policy ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Most that a value may move in one batch, in units of the whitened reward."""
    kl_beta: float = Field(default=0.01, ge=0)
    """0.01 for 7B and 13B, 0.005 for 34B and 70B."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    gate_threshold: float = Field(default=0.15, gt=0, lt=1)
    whiten_by: Literal["batch", "domain"] = "batch"
    """Whiten rewards over the whole batch, or helpfulness and safety scores each by themselves."""
    unfinished_score: float = -1.0
    """Whitened score of a response that was cut off; it takes no part in whitening (trap 7)."""
    num_held_out_prompts: dict[str, int] = {"helpfulness": 512, "safety": 128}
    """Validation prompts for early stopping."""
    evaluate_every: int = Field(default=10, gt=0)
    """Iterations between held-out evaluations."""
    patience: int = Field(default=5, gt=0)
    """Held-out evaluations without a new best before training stops."""
    checkpoint_every: int = Field(default=10, gt=0, json_schema_extra={"in_key": False})
    overlong: Overlong = "error"
    engine: EngineSettings = EngineSettings()


class Config(StageConfig, PpoSettings):
    """Settings and inputs of one PPO run."""

    policy: ArtifactRef
    helpfulness_rm: ArtifactRef
    safety_rm: ArtifactRef
    prompts: ArtifactRef


@dataclass
class Progress:
    """What early stopping remembers; saved in every checkpoint."""

    best_iteration: int = -1
    best_objective: float = -math.inf
    num_without_best: int = 0
    baseline: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of the held-out reward by domain, before training."""


@dataclass
class Models:
    """The five models: two that train, three that judge."""

    policy: Engine
    value: Engine
    reference: Any
    rewards: RewardModels
    sampler: CausalLM
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Prompts:
    """Rows of the prompts table and their tokens."""

    rows: list[dict[str, Any]]
    tokens: list[list[int]]

    def batch(self, seed: int, iteration: int, size: int) -> "Prompts":
        """The iteration's prompts: all of them in one order, then all in another."""
        first, last = iteration * size, (iteration + 1) * size
        epochs = range(first // len(self.rows), (last - 1) // len(self.rows) + 1)
        order = np.concatenate([shuffled(len(self.rows), seed, epoch) for epoch in epochs])
        start = first - epochs[0] * len(self.rows)
        indices = order[start : start + size].tolist()
        return Prompts([self.rows[i] for i in indices], [self.tokens[i] for i in indices])


def run(config: Config, work: WorkDir) -> StageOutput:
    """Sample, measure, reward, update; keep the version that held-out prompts like best."""
    models = build(config, work)
    train_prompts = load_prompts(config, work, models, "train", config.num_prompts)
    held_out = load_prompts(config, work, models, "validation", config.num_held_out_prompts)
    checkpointer = Checkpointer(work.checkpoints, work.rank, config.checkpoint_every)
    engines = {"policy": models.policy, "value": models.value}
    first, extra = checkpointer.restore(engines)
    progress = Progress(**extra["progress"]) if extra else Progress()
    models.sampler = plain_policy(models.policy)
    if not extra:
        evaluate_held_out(config, work, models, held_out, progress, iteration=0)

    iteration = first
    while iteration < config.num_iterations and progress.num_without_best < config.patience:
        clock = Clock()
        batch = train_prompts.batch(config.seed, iteration, config.batch_size)
        rollouts, reward_stats = roll_out(config, work, models, batch, iteration, clock)
        write_rollouts(work, iteration, batch, rollouts)
        stats = update(config, work, models, rollouts, iteration, clock)
        with clock.phase("sync"):
            models.sampler = plain_policy(models.policy)
        work.track(iteration, {**reward_stats, **stats, **clock.metrics()})
        iteration += 1
        work.progress(iteration, config.num_iterations, "iteration", **reward_stats)
        if iteration % config.evaluate_every == 0:
            evaluate_held_out(config, work, models, held_out, progress, iteration)
        checkpointer.maybe_save(iteration, engines, {"progress": vars(progress)})

    return StageOutput(
        {"model": publish_best(work, progress), "rollouts": publish_rollouts(work)},
        {
            "best_iteration": float(progress.best_iteration),
            "held_out_objective": progress.best_objective,
            "num_iterations": float(iteration),
        },
    )


def build(config: Config, work: WorkDir) -> Models:
    """Policy and reference from the rejection-sampling model, value from the Helpfulness RM."""
    policy, tokenizer = load_policy(work, config.policy)
    reference = frozen(load_policy(work, config.policy)[0], config.engine, work.rank)
    value = ValueModel.from_reward(load_scorer(work, config.helpfulness_rm))
    return Models(
        policy=_engine(config, work, policy, config.learning_rate),
        value=_engine(config, work, value, config.value_learning_rate),
        reference=reference,
        rewards=RewardModels.load(
            work, config.helpfulness_rm, config.safety_rm, config.gate_threshold, config.engine
        ),
        sampler=policy,
        tokenizer=tokenizer,
    )


def _engine(config: Config, work: WorkDir, module: torch.nn.Module, learning_rate: float) -> Engine:
    optimizer = OptimizerSettings(
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        gradient_clipping=config.gradient_clipping,
    )
    return Engine(module, optimizer, constant(learning_rate), config.engine, work.rank)


def plain_policy(policy: Engine) -> CausalLM:
    """The policy's weights, gathered once, in a module that generation may call freely."""
    module = policy.plain_copy()
    assert isinstance(module, CausalLM)
    return module


def load_prompts(
    config: Config, work: WorkDir, models: Models, split: str, num_by_domain: dict[str, int]
) -> Prompts:
    """A seeded choice of one split's prompts that leave room for a response."""
    rows = select_prompts(
        work.table(config.prompts, "prompts"), split, num_by_domain, seed_from(config.seed, "ppo")
    )
    max_prompt_tokens = models.sampler.config.max_seq_len - config.max_new_tokens
    return Prompts(*fitting_prompts(rows, models.tokenizer, max_prompt_tokens, config.overlong))


def roll_out(
    config: Config, work: WorkDir, models: Models, batch: Prompts, iteration: int, clock: "Clock"
) -> tuple[Rollouts, dict[str, float]]:
    """Sample responses and work out what each of their tokens is worth."""
    # 1. Sample, with the weights gathered once into a plain module.
    with clock.phase("generate"):
        trajectories = sample(config, work, models, batch, seed_from(config.seed, iteration))
    lengths = [len(t.response) for t in trajectories]

    # 2. Log-probs of policy and reference at the sampling temperature, by the trainer itself.
    with clock.phase("logprobs"):
        logprobs = response_logprobs(models.policy, trajectories, config, work)
        ref_logprobs = response_logprobs(models.reference, trajectories, config, work)
    with clock.phase("values"):
        values = per_token(
            lambda b: models.value(b.tokens, b.documents, b.rows), trajectories, work.rank
        )

    # 3. The gated reward, whitened; the KL term at every token.
    with clock.phase("rewards"):
        is_safety = [row["domain"] == "safety" for row in batch.rows]
        raw = models.rewards.score([t.tokens for t in trajectories], is_safety, work)
        scores = whitened_scores(config, raw.reward, is_safety, trajectories)
    rewards = kl_shaped_rewards(scores, logprobs, ref_logprobs, lengths, config.kl_beta)
    advantages, returns = gae(rewards, values, lengths, config.gamma, config.gae_lambda)

    kl = sum_per_response(logprobs - ref_logprobs, lengths)
    finished = torch.tensor([t.finished for t in trajectories])
    stats = {
        "ppo/reward": float(raw.reward.mean()),
        "ppo/helpfulness_score": float(raw.helpfulness.mean()),
        "ppo/safety_score": float(raw.safety.mean()),
        "ppo/gate_rate": float(raw.gated.float().mean()),
        "ppo/kl": float(kl.mean()),
        "ppo/response_tokens": float(np.mean(lengths)),
        "ppo/unfinished_share": 1 - float(finished.float().mean()),
    }
    rollouts = Rollouts(
        trajectories, lengths, logprobs, ref_logprobs, values, scores, kl, advantages, returns
    )
    return rollouts, stats


def sample(
    config: Config, work: WorkDir, models: Models, prompts: Prompts, seed: int
) -> list[Trajectory]:
    """One response to each prompt, as ids."""
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    samples = sample_responses(
        models.sampler, prompts.tokens, sampling, models.tokenizer, seed, work
    )
    pairs = zip(prompts.tokens, samples, strict=True)
    return [Trajectory(prompt, s.tokens, s.finished) for prompt, s in pairs]


def response_logprobs(
    model: Any, trajectories: list[Trajectory], config: Config, work: WorkDir
) -> Tensor:
    """Log-probs (T,) of the response tokens at the sampling temperature (trap 3)."""

    def measure(flat: LossBatch) -> Tensor:
        out = model(
            flat.tokens,
            flat.documents,
            flat.rows,
            flat.targets,
            temperature=config.temperature,
            mode="logprobs",
        )
        return out.logprobs

    return per_token(measure, trajectories, work.rank)


def whitened_scores(
    config: Config, reward: Tensor, is_safety: list[bool], trajectories: list[Trajectory]
) -> Tensor:
    """R̃_c (N,): whiten(logit(R_c)) over the responses that ended; scores are logits already."""
    finished = torch.tensor([t.finished for t in trajectories])
    group = torch.tensor(is_safety).long() if config.whiten_by == "domain" else finished.long() * 0
    scores = torch.full_like(reward, config.unfinished_score)
    if finished.any():
        scores[finished] = whiten_by_group(reward[finished], group[finished])
    return scores


def update(
    config: Config,
    work: WorkDir,
    models: Models,
    rollouts: Rollouts,
    iteration: int,
    clock: "Clock",
) -> dict[str, float]:
    """One pass over the batch in mini-batches; one step of policy and value on each."""
    order = shuffled(len(rollouts.trajectories), config.seed, iteration, 1)
    train_policy = iteration >= config.num_value_warmup_iterations
    totals: dict[str, float] = {}
    num_mini_batches = math.ceil(len(order) / config.mini_batch_size)
    for m in range(num_mini_batches):
        mini_batch = order[m * config.mini_batch_size : (m + 1) * config.mini_batch_size].tolist()
        with clock.phase("update"):
            stats = mini_batch_step(config, work, models, rollouts, mini_batch, train_policy)
        for name, value in stats.items():
            totals[name] = totals.get(name, 0.0) + value / num_mini_batches
    totals["ppo/explained_variance"] = float(explained_variance(rollouts.values, rollouts.returns))
    return totals


def mini_batch_step(
    config: Config,
    work: WorkDir,
    models: Models,
    rollouts: Rollouts,
    indices: list[int],
    train_policy: bool,
) -> dict[str, float]:
    """One gradient step; losses are means over the response tokens of the whole mini-batch."""
    num_tokens = sum(rollouts.lengths[i] for i in indices)
    micro_batches = share_of_rank(indices, work.rank, config.micro_batch_size)
    sums: dict[str, float] = {}
    for i, micro_batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        flat = collate([rollouts.trajectories[j].example for j in micro_batch], work.rank.device)
        old = rollouts.slices(micro_batch)
        if train_policy:
            _add(sums, policy_step(config, models.policy, flat, rollouts, old, num_tokens, last))
        _add(sums, value_step(config, models.value, flat, rollouts, old, num_tokens, last))
    if train_policy:
        sums["ppo/policy_gradient_norm"] = models.policy.step().gradient_norm / work.rank.world_size
    sums["ppo/value_gradient_norm"] = models.value.step().gradient_norm / work.rank.world_size
    return {name: work.rank.sum(value) for name, value in sums.items()}


def policy_step(
    config: Config,
    policy: Engine,
    flat: LossBatch,
    rollouts: Rollouts,
    old: Tensor,
    num_tokens: int,
    last: bool,
) -> dict[str, float]:
    """Backward of the clipped policy loss on one micro-batch."""
    out = policy(
        flat.tokens,
        flat.documents,
        flat.rows,
        flat.targets,
        temperature=config.temperature,
        mode="logprobs",
    )
    device = out.logprobs.device
    old_logprobs = rollouts.logprobs[old].to(device)
    advantages = rollouts.advantages[old].to(device)
    losses = policy_loss(out.logprobs, old_logprobs, advantages, config.clip)
    loss = losses.loss.sum() / num_tokens
    policy.backward(loss, last=last)
    return {
        "ppo/policy_loss": loss.item(),
        "ppo/policy_clip_fraction": float(losses.is_clipped.sum()) / num_tokens,
        "ppo/approx_kl": float(losses.approx_kl.sum()) / num_tokens,
        "ppo/entropy": float(out.entropy.detach().sum()) / num_tokens,
    }


def value_step(
    config: Config,
    value: Engine,
    flat: LossBatch,
    rollouts: Rollouts,
    old: Tensor,
    num_tokens: int,
    last: bool,
) -> dict[str, float]:
    """Backward of the clipped value loss on one micro-batch."""
    values = value(flat.tokens, flat.documents, flat.rows)
    device = values.device
    old_values, returns = rollouts.values[old].to(device), rollouts.returns[old].to(device)
    losses = value_loss(values, old_values, returns, config.value_clip)
    loss = losses.loss.sum() / num_tokens
    value.backward(loss, last=last)
    return {
        "ppo/value_loss": loss.item(),
        "ppo/value_clip_fraction": float(losses.is_clipped.sum()) / num_tokens,
    }


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def evaluate_held_out(
    config: Config,
    work: WorkDir,
    models: Models,
    prompts: Prompts,
    progress: Progress,
    iteration: int,
) -> None:
    """Early stopping: the held-out objective R̃_c − β·KL; a new best is written to disk.

    R̃_c is the reward in standard deviations of its domain above the model PPO started from.
    """
    trajectories = sample(config, work, models, prompts, seed_from(config.seed, "held out"))
    domains = [row["domain"] for row in prompts.rows]
    scores = models.rewards.score(
        [t.tokens for t in trajectories], [d == "safety" for d in domains], work
    )
    standardised = torch.zeros_like(scores.reward)
    for domain in sorted(set(domains)):
        own = torch.tensor([d == domain for d in domains])
        reward = scores.reward[own]
        mean, spread = progress.baseline.setdefault(
            domain, (float(reward.mean()), float(reward.std(correction=0)) + 1e-6)
        )
        standardised[own] = (reward - mean) / spread
    logprobs = response_logprobs(models.policy, trajectories, config, work)
    ref_logprobs = response_logprobs(models.reference, trajectories, config, work)
    kl = float((logprobs - ref_logprobs).sum()) / len(trajectories)
    objective = float(standardised.mean()) - config.kl_beta * kl
    work.track(
        iteration,
        {
            "held_out/objective": objective,
            "held_out/reward": float(scores.reward.mean()),
            "held_out/kl": kl,
        },
    )
    if objective > progress.best_objective:
        progress.best_objective, progress.best_iteration = objective, iteration
        progress.num_without_best = 0
        save_best(work, models, iteration)
    else:
        progress.num_without_best += 1


def best_folder(work: WorkDir, iteration: int) -> Path:
    """Where the weights of a best iteration wait for the end of the run."""
    return work.checkpoints / f"best-{iteration:05d}"


def save_best(work: WorkDir, models: Models, iteration: int) -> None:
    """Write the policy's weights aside; the one before goes when the checkpoint is past it."""
    state = models.policy.full_state()
    if work.rank.is_main:
        folder = best_folder(work, iteration)
        folder.mkdir(parents=True, exist_ok=True)
        save_causal(folder, models.sampler.config, state, **special_ids(models.tokenizer))
        models.tokenizer.copy_to(folder)


def publish_best(work: WorkDir, progress: Progress) -> tuple[Path, str]:
    """The best version as the stage's model."""
    folder = work.output("model")
    if work.rank.is_main:
        shutil.copytree(best_folder(work, progress.best_iteration), folder, dirs_exist_ok=True)
    return folder, CHECKPOINT_KIND


def write_rollouts(work: WorkDir, iteration: int, batch: Prompts, rollouts: Rollouts) -> None:
    """Keep an iteration's rollouts beside the checkpoints, so that a resumed run has them all."""
    if work.rank.is_main:
        folder = work.checkpoints / "rollouts"
        folder.mkdir(parents=True, exist_ok=True)
        rows = rollout_rows(iteration, batch.rows, rollouts)
        write_table(folder / f"iteration-{iteration:05d}.parquet", rows, CONTRACTS["rollouts"])


def publish_rollouts(work: WorkDir) -> tuple[Path, str]:
    """All iterations' rollouts as one artifact."""
    folder = work.output("rollouts")
    if work.rank.is_main:
        shutil.copytree(work.checkpoints / "rollouts", folder, dirs_exist_ok=True)
    return folder, CONTRACTS["rollouts"].kind


class Clock:
    """Seconds spent in each phase of one iteration."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """For `WorkDir.track`."""
        return {f"time/{name}": seconds for name, seconds in self._seconds.items()}


if __name__ == "__main__":
    main(Config, run)
