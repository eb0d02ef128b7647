"""Proximal policy optimisation on the gated reward of two reward models (§3.2.3).

    rlhf stage ppo --recipe demo --version 2
    torchrun --nproc-per-node 8 -m stages.ppo --config ppo.json --home RLHF_HOME

Maximises R̃_c(g|p) − β · KL(π_θ ‖ π_0): the score is paid once, on the last token of the response,
the KL term at every token. π_0 is the rejection-sampling model that PPO starts from.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.ratings import Domain
from kernels.generation import Sampling
from kernels.heads import ValueModel
from kernels.model import CausalLM, ModelConfig
from kernels.ppo import AdaptiveKL, gae, kl_shaped_rewards, sum_per_response
from stages.models.batches import seed_from, shuffled
from stages.models.early_stopping import (
    EarlyStopping,
    forget_bests_after,
    forget_older_bests,
    keep_best,
    publish_best,
    within_budget,
)
from stages.models.folders import load_policy, load_scorer
from stages.models.ppo_update import UpdateSettings, update
from stages.models.prompts import PromptCounts, Prompts, select_prompts
from stages.models.rewards import GATE_THRESHOLD, RewardModels, raw_scores, whitened
from stages.models.rollouts import (
    Rollouts,
    Trajectory,
    forget_rollouts_from,
    keep_rollouts,
    publish_rollouts,
    response_logprobs,
    response_values,
    sample_rows,
    sample_trajectories,
)
from stages.models.sampling import fitting_prompts
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.clock import Clock
from stages.runtime.engine import Engine, EngineSettings, Frozen, OptimizerSettings, frozen
from stages.runtime.schedules import constant
from stages.runtime.settings import CheckpointSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.throughput import Meter, training_flops
from stages.text.dialogue import Overlong
from stages.text.tokenizer import Tokenizer

VERSION = "3"


class PpoSettings(UpdateSettings, CheckpointSettings):
    """The paper's settings."""

    num_iterations: int = Field(default=400, gt=0)
    """At most; early stopping ends it sooner (the paper ran 200 to 400)."""
    num_prompts: PromptCounts = {Domain.helpfulness: 40_000, Domain.safety: 10_000}
    """Training prompts to draw from; iterations go through them in a seeded order."""
    batch_size: int = Field(default=512, gt=0)
    """Responses per iteration, over all ranks."""
    generation_batch_size: int = Field(default=256, gt=0, json_schema_extra={"in_key": False})
    """Responses that a rank writes side by side; memory for their keys and values grows with it."""
    max_new_tokens: int = Field(default=1024, gt=0)
    learning_rate: float = Field(default=1e-6, gt=0)
    """Constant."""
    value_learning_rate: float = Field(default=1e-6, gt=0)
    num_value_warmup_iterations: int = Field(default=0, ge=0)
    """First iterations that train the value model alone: its head starts as a reward head."""
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    kl_beta: float = Field(default=0.01, ge=0)
    """0.01 for 7B and 13B, 0.005 for 34B and 70B."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL per response, in nats, that β is moved to hold, from `kl_beta` on; without it β is
    constant, as in the paper."""
    kl_horizon: int = Field(default=10_000, gt=0)
    """Responses over which a KL 20 % off the target moves β by about 20 %."""
    kl_budget: float | None = Field(default=None, gt=0)
    """KL per response, in nats, that ends training; no version beyond it is kept."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    gate_threshold: float = Field(default=GATE_THRESHOLD, gt=0, lt=1)
    whiten_by: Literal["batch", "domain", "none"] = "batch"
    """Whiten rewards over the whole batch, or helpfulness and safety scores each by themselves;
    "none" takes them as they are, which an ablation needs and nobody else."""
    unfinished_score: float = -1.0
    """Whitened score of a response that was cut off; it takes no part in whitening (trap 7)."""
    num_held_out_prompts: PromptCounts = {Domain.helpfulness: 512, Domain.safety: 128}
    """Validation prompts for early stopping."""
    evaluate_every: int = Field(default=10, gt=0)
    """Iterations between held-out evaluations; the last one is always followed by one."""
    patience: int = Field(default=5, gt=0)
    """Held-out evaluations without a new best before training stops."""
    show_samples_every: int = Field(default=10, gt=0, json_schema_extra={"in_key": False})
    """Iterations from one table of samples in MLflow to the next."""
    checkpoint_every: int = Field(default=10, gt=0, json_schema_extra={"in_key": False})
    """Iterations from one checkpoint to the next."""
    overlong: Overlong = "error"
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _beta_can_be_moved(self) -> "PpoSettings":
        if self.kl_target is None:
            return self
        if self.kl_beta == 0:
            raise ValueError("kl_target multiplies kl_beta, and 0 stays 0: set kl_beta above 0")
        if self.kl_horizon <= self.batch_size:
            raise ValueError(
                f"kl_horizon {self.kl_horizon} is no longer than a batch of {self.batch_size} "
                "responses, and beta would jump: raise kl_horizon"
            )
        return self


class Config(StageConfig, PpoSettings):
    """Settings and inputs of one PPO run."""

    policy: ArtifactRef
    helpfulness_rm: ArtifactRef
    safety_rm: ArtifactRef
    prompts: ArtifactRef


@dataclass
class Models:
    """The five models: two that train, three that judge."""

    policy: Engine
    value: Engine
    reference: Frozen
    rewards: RewardModels
    config: ModelConfig
    """The policy's."""
    tokenizer: Tokenizer


def run(config: Config, work: WorkDir) -> StageOutput:
    """Sample, measure, reward, update; keep the version that held-out prompts like best."""
    models = build(config, work)
    prompts = load_prompts(config, work, models, "train", config.num_prompts)
    held_out = load_prompts(config, work, models, "validation", config.num_held_out_prompts)

    stopping, num_iterations = train(config, work, models, prompts, held_out)

    return StageOutput(
        {"model": publish_best(work, stopping), "rollouts": publish_rollouts(work)},
        {
            "best_iteration": float(stopping.best_iteration),
            "held_out_objective": stopping.best_objective,
            "num_iterations": float(num_iterations),
        },
    )


def train(
    config: Config, work: WorkDir, models: Models, prompts: Prompts, held_out: Prompts
) -> tuple[EarlyStopping, int]:
    """Iterations until early stopping, the KL budget's end or the last one; how many there were.

    Metrics are tracked by the number of iterations done, each number once: 0 is before training.
    """
    engines = {"policy": models.policy, "value": models.value}
    meter = Meter(config.engine.precision, work.rank)
    with Checkpointer(work.checkpoints, work.rank, config) as checkpointer:
        done, extra = checkpointer.restore(engines)
        stopping = EarlyStopping(**extra.get("early_stopping", {}))
        kl = AdaptiveKL(**extra["kl"]) if "kl" in extra else kl_controller(config)
        forget_bests_after(work, done)
        forget_rollouts_from(work, done)
        if done == 0:
            work.track(0, evaluate_held_out(config, work, models, held_out, stopping, 0))
        while done < config.num_iterations and not stopping.is_over(config.patience):
            metrics = iterate(config, work, models, prompts, meter, done, kl.beta)
            done += 1
            stopping.spend(metrics["ppo/kl"], config.kl_budget)
            # while the value model trains alone the policy cannot move, and its KL says nothing
            if config.kl_target is not None and done > config.num_value_warmup_iterations:
                kl.update(metrics["ppo/kl"], config.batch_size)
            if is_evaluated(config, done, stopping):
                metrics |= evaluate_held_out(config, work, models, held_out, stopping, done)
            work.track(done, metrics)
            work.progress(done, config.num_iterations, "iteration", reward=metrics["ppo/reward"])
            state = {"early_stopping": vars(stopping), "kl": kl.state_dict()}
            if checkpointer.maybe_save(done, engines, state):
                forget_older_bests(work, checkpointer.steps())
    return stopping, done


def is_evaluated(config: Config, done: int, stopping: EarlyStopping) -> bool:
    """Whether the policy is compared on held-out prompts after so many iterations: at its
    interval and at the end, once it has begun to train."""
    is_last = done == config.num_iterations or stopping.is_spent
    is_due = done % config.evaluate_every == 0 or is_last
    return is_due and done > config.num_value_warmup_iterations


def kl_controller(config: Config) -> AdaptiveKL:
    """β and what moves it; without a target it is never asked to."""
    return AdaptiveKL(config.kl_beta, config.kl_target or math.inf, config.kl_horizon)


def iterate(
    config: Config,
    work: WorkDir,
    models: Models,
    prompts: Prompts,
    meter: Meter,
    iteration: int,
    beta: float,
) -> dict[str, float]:
    """One batch of prompts: responses, their worth, and one pass of updates."""
    clock = Clock()
    policy = models.policy if iteration >= config.num_value_warmup_iterations else None
    with meter.step():
        batch = prompts.batch(config.seed, iteration, config.batch_size)
        rollouts, reward_stats = roll_out(config, work, models, batch, iteration, clock, beta)
        keep_rollouts(work, iteration, batch.rows, rollouts)
        if (iteration + 1) % config.show_samples_every == 0:
            work.show(iteration + 1, sample_rows(batch.rows, rollouts, models.tokenizer))
        with clock.phase("update"):
            order = shuffled(len(batch.rows), config.seed, iteration, 1).tolist()
            stats = update(config, policy, models.value, rollouts, order, work.rank)
    lengths = [len(t.tokens) for t in rollouts.trajectories]
    speed = meter.metrics(sum(lengths), iteration_flops(models, lengths, policy is not None))
    return {**reward_stats, **stats, **clock.metrics(), **speed}


def iteration_flops(models: Models, lengths: list[int], train_policy: bool) -> float:
    """Of an iteration on documents of these lengths; a pass without gradients is a third.

    The policy writes and measures them, the reference measures, two reward models score and the
    value model values; then value and, after its warm-up, policy learn.
    """
    policy = training_flops(models.policy.module, lengths)
    scorer = training_flops(models.value.module, lengths)
    return policy * (3 / 3 + train_policy) + scorer * (3 / 3 + 1)


def build(config: Config, work: WorkDir) -> Models:
    """Policy and reference from the rejection-sampling model, value from the Helpfulness RM."""
    # One after the other: a model is whole in each rank's memory until its engine has sharded it.
    module, tokenizer = load_policy(work, config.policy)
    policy = _engine(config, work, module, config.learning_rate)
    reference = frozen(load_policy(work, config.policy)[0], config.engine, work.rank)
    value = ValueModel.from_reward(load_scorer(work, config.helpfulness_rm))
    return Models(
        policy=policy,
        value=_engine(config, work, value, config.value_learning_rate),
        reference=reference,
        rewards=RewardModels.load(
            work, config.helpfulness_rm, config.safety_rm, config.gate_threshold, config.engine
        ),
        config=module.config,
        tokenizer=tokenizer,
    )


def _engine(config: Config, work: WorkDir, module: torch.nn.Module, learning_rate: float) -> Engine:
    optimizer = OptimizerSettings(
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        gradient_clipping=config.gradient_clipping,
    )
    return Engine(module, optimizer, constant(learning_rate), config.engine, work.rank)


def load_prompts(
    config: Config, work: WorkDir, models: Models, split: str, num_by_domain: dict[Domain, int]
) -> Prompts:
    """A seeded choice of one split's prompts that leave room for a response."""
    rows = select_prompts(
        work.table(config.prompts, "prompts"), split, num_by_domain, seed_from(config.seed, "ppo")
    )
    max_prompt_tokens = models.config.max_seq_len - config.max_new_tokens
    return Prompts(*fitting_prompts(rows, models.tokenizer, max_prompt_tokens, config.overlong))


def roll_out(
    config: Config,
    work: WorkDir,
    models: Models,
    batch: Prompts,
    iteration: int,
    clock: Clock,
    beta: float,
) -> tuple[Rollouts, dict[str, float]]:
    """Sample responses and work out what each of their tokens is worth."""
    # 1. Sample, with the weights gathered once into a plain module.
    trajectories = sample(config, work, models, batch, seed_from(config.seed, iteration), clock)
    lengths = [len(t.response) for t in trajectories]

    # 2. Log-probs of policy and reference at the sampling temperature, by the trainer itself.
    with clock.phase("logprobs"):
        logprobs, ref_logprobs = (
            response_logprobs(model, trajectories, config.temperature, work.rank)
            for model in (models.policy, models.reference)
        )
    with clock.phase("values"):
        values = response_values(models.value, trajectories, work.rank)

    # 3. The gated reward, whitened; the KL term at every token.
    with clock.phase("rewards"):
        is_safety = [domain == "safety" for domain in batch.domains]
        raw = models.rewards.score([t.tokens for t in trajectories], is_safety, work)
        finished = torch.tensor([t.finished for t in trajectories])
        group = torch.tensor(is_safety) & (config.whiten_by == "domain")
        make_scores = raw_scores if config.whiten_by == "none" else whitened
        scores = make_scores(raw.reward, group, finished, config.unfinished_score)
    rewards = kl_shaped_rewards(scores, logprobs, ref_logprobs, lengths, beta)
    advantages, returns = gae(rewards, values, lengths, config.gamma, config.gae_lambda)

    kl = sum_per_response(logprobs - ref_logprobs, lengths)
    stats = {
        "ppo/reward": float(raw.reward.mean()),
        "ppo/helpfulness_score": float(raw.helpfulness.mean()),
        "ppo/safety_score": float(raw.safety.mean()),
        "ppo/gate_rate": float(raw.gated.float().mean()),
        "ppo/kl": float(kl.mean()),
        "ppo/beta": beta,
        "ppo/response_tokens": float(np.mean(lengths)),
        "ppo/unfinished_share": 1 - float(finished.float().mean()),
    }
    rollouts = Rollouts(
        trajectories, lengths, logprobs, ref_logprobs, values, scores, kl, advantages, returns
    )
    return rollouts, stats


def sample(
    config: Config, work: WorkDir, models: Models, prompts: Prompts, seed: int, clock: Clock
) -> list[Trajectory]:
    """One response of the policy as it is now to each prompt."""
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    with ExitStack() as until_sampled:
        with clock.phase("sync"):
            sampler = until_sampled.enter_context(models.policy.gathered())
            assert isinstance(sampler, CausalLM)
        with clock.phase("generate"):
            return sample_trajectories(
                sampler,
                prompts,
                sampling,
                models.tokenizer,
                seed,
                work,
                config.generation_batch_size,
            )


def evaluate_held_out(
    config: Config,
    work: WorkDir,
    models: Models,
    prompts: Prompts,
    stopping: EarlyStopping,
    iteration: int,
) -> dict[str, float]:
    """Early stopping: the held-out objective R̃_c − β·KL; a new best is written to disk.

    R̃_c is the reward in standard deviations of its domain above the model PPO started from, and
    `unfinished_score` where the response was cut off.
    """
    seed = seed_from(config.seed, "held out")
    trajectories = sample(config, work, models, prompts, seed, Clock())
    is_safety = [domain == "safety" for domain in prompts.domains]
    reward = models.rewards.score([t.tokens for t in trajectories], is_safety, work).reward
    logprobs, ref_logprobs = (
        response_logprobs(model, trajectories, config.temperature, work.rank)
        for model in (models.policy, models.reference)
    )
    kl = float((logprobs - ref_logprobs).sum()) / len(trajectories)
    finished = torch.tensor([t.finished for t in trajectories])
    standardised = stopping.standardised(reward, prompts.domains, finished, config.unfinished_score)
    objective = float(standardised.mean()) - config.kl_beta * kl
    if stopping.observe(objective, iteration, within_budget(kl, config.kl_budget)):
        keep_best(work, models.policy, models.config, models.tokenizer, iteration)
    return {
        "held_out/objective": objective,
        "held_out/reward": float(reward.mean()),
        "held_out/kl": kl,
    }


if __name__ == "__main__":
    main(Config, run)
