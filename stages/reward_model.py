"""Train a reward model on binary comparisons (§3.2.2).

    rlhf stage reward_model --recipe demo --version 3
    torchrun --nproc-per-node 8 -m stages.reward_model --config rm.json --home RLHF_HOME

Helpfulness and safety are two models from this one file; `domain` tells them apart.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.errors import UserError
from data_contracts.ratings import MARGINS, Domain
from data_contracts.splits import normalised as normalised_text
from data_contracts.splits import opening
from kernels.attention import Documents
from kernels.heads import RewardModel
from kernels.losses import ranking_loss, safety_auxiliary_loss
from stages.models import normalisation
from stages.models.batches import seed_from, share_of_rank, shuffled
from stages.models.calibration import (
    calibration_error,
    calibration_rows,
    gate_quality,
    length_bias,
)
from stages.models.folders import load_policy, load_scorer, save_scorer
from stages.models.normalisation import Normalisation, normalised
from stages.models.pairs import (
    OverlongPair,
    Pair,
    PairScores,
    accuracy_rows,
    flat_pairs,
    render_pairs,
    safety_targets,
    score_pairs,
    when_held_out,
)
from stages.models.rewards import GATE_THRESHOLD
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings
from stages.runtime.schedules import cosine_with_warmup
from stages.runtime.settings import CheckpointSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.runtime.throughput import Meter
from stages.text.tokenizer import Tokenizer

VERSION = "2"
NORMALISATION_PAIRS = 2000
"""Training pairs from which the scores' level and scale are read."""


class RewardModelSettings(CheckpointSettings):
    """The paper's settings for both reward models."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak; the paper uses 5e-6 for 70B."""
    final_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    min_warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    num_epochs: int = Field(default=1, gt=0)
    """One: the paper saw over-fitting beyond it."""
    global_batch_size: int = Field(default=512, gt=0)
    """Comparisons per optimizer step, over all ranks (each is two rows)."""
    micro_batch_size: int = Field(default=8, gt=0, json_schema_extra={"in_key": False})
    """Comparisons per forward pass and rank."""
    margin: Literal["none", "small", "large"] = "small"
    """Margin by rating (Table 27)."""
    safety_auxiliary_weight: float = Field(default=1.0, ge=0)
    """Weight of the safety-label loss; it acts in the Safety RM only (Table 29)."""
    other_share: float = Field(default=0.5, ge=0, lt=1)
    """Helpfulness RM: share of its pairs drawn from safety and open-source data."""
    helpfulness_share: float = Field(default=0.1, ge=0, lt=1)
    """Safety RM: share of its pairs drawn from helpfulness data, own and open-source."""
    newest_share: float = Field(default=0.5, gt=0, le=1)
    """Of a model that goes on from the version before: share of its pairs from the newest weekly
    batch of its domain; the others are drawn anew from all the mix holds beside it."""
    normalise_scores: bool = False
    """Put the scores on the level that the gate takes them for. Safety RM: fitted to the labels of
    its training responses, so that the gate's threshold means a probability; the auxiliary loss
    does so in training, and the two go together. Helpfulness RM: the mean over its training
    responses becomes 0, above every score below the gate's threshold."""
    max_tokens: int = Field(default=4096, gt=1)
    """Tokens of prompt and response together."""
    max_test_pairs: int | None = Field(default=None, gt=0)
    """Most held-out pairs of each test set, a seeded choice; all of them without it."""
    overlong: OverlongPair = "error"
    engine: EngineSettings = EngineSettings()


class Config(StageConfig, RewardModelSettings):
    """Settings and inputs of one reward model."""

    domain: Domain
    init_from: ArtifactRef
    """The chat model (§3.2.2)."""
    continue_from: ArtifactRef | None = None
    """The reward model of the version before; then the chat model gives its tokenizer alone."""
    preferences: tuple[ArtifactRef, ...]
    """Every weekly batch so far."""
    open_preferences: ArtifactRef


def run(config: Config, work: WorkDir) -> StageOutput:
    """Mix the data, train one epoch of ranking, measure it on every test set, save."""
    model, tokenizer = start(config, work)
    max_tokens = min(config.max_tokens, model.config.max_seq_len)
    config = config.model_copy(update={"max_tokens": max_tokens})
    own, open_source = load_preferences(config, work)
    rows = mixture(config, own, open_source)
    if config.continue_from is not None:
        rows = newest_with_replay(config, rows)
    pairs = render_pairs(rows, tokenizer, config.max_tokens, config.overlong)
    if not pairs:
        raise UserError(
            f"The {config.domain} reward model has no training pair",
            f"Collect {config.domain} preferences, or set overlong=truncate if they are too long",
        )

    engine = train(config, model, pairs, work)

    scores = fitted_scores(config, engine, pairs, work)
    accuracies, calibration, metrics = evaluate(
        config, normalised(engine, scores), own, open_source, tokenizer, work
    )
    saved = save_scorer(work, "model", engine, model.config, tokenizer)
    if config.normalise_scores and work.rank.is_main:
        normalisation.write(saved[0], scores)
    return StageOutput(
        {
            "model": saved,
            "accuracies": table_output(work, "accuracies", "accuracies", accuracies),
            "calibration": table_output(work, "calibration", "calibration", calibration),
        },
        {
            "num_pairs": float(len(pairs)),
            "num_dropped": float(len(rows) - len(pairs)),
            **{
                f"accuracy/{row['test_set']}/{row['rating'] or 'all'}": row["accuracy"]
                for row in accuracies
            },
            **metrics,
        },
    )


def start(config: Config, work: WorkDir) -> tuple[RewardModel, Tokenizer]:
    """The model to train: the chat model with a new head, or the version before's reward model."""
    policy, tokenizer = load_policy(work, config.init_from)
    if config.continue_from is not None:
        return load_scorer(work, config.continue_from), tokenizer
    generator = torch.Generator().manual_seed(config.seed)
    return RewardModel.from_causal(policy, generator), tokenizer


def load_preferences(
    config: Config, work: WorkDir
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all weekly batches, and of the open-source data."""
    own = [r for ref in config.preferences for r in work.table(ref, "preferences").to_pylist()]
    return own, work.table(config.open_preferences, "preferences").to_pylist()


def mixture(
    config: Config, own: list[dict[str, Any]], open_source: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The paper's data mix (§3.2.2), in a seeded order.

    Helpfulness: all own helpfulness data, and `other_share` of the whole drawn uniformly from
    safety and open-source data. Safety: all safety data, own and open-source, and
    `helpfulness_share` of the whole drawn from helpfulness data. Draws are without repetition:
    a pool that is too small is used up. What either side holds out, neither side trains on: weekly
    batches and open-source data are split apart, and may share prompts.
    """
    held_out = {question(row) for row in own + open_source if row["split"] != "train"}
    own, open_train = (
        [row for row in rows if row["split"] == "train" and question(row) not in held_out]
        for rows in (own, open_source)
    )
    if config.domain is Domain.helpfulness:
        core = [row for row in own if row["domain"] == Domain.helpfulness]
        pool = [row for row in own if row["domain"] == Domain.safety] + open_train
        share = config.other_share
    else:
        core = [row for row in own + open_train if row["domain"] == Domain.safety]
        pool = [row for row in own + open_train if row["domain"] == Domain.helpfulness]
        share = config.helpfulness_share
    num_drawn = round(len(core) * share / (1 - share))
    drawn = shuffled(len(pool), seed_from(config.seed, config.domain))[:num_drawn]
    return core + [pool[i] for i in drawn]


def question(row: dict[str, Any]) -> str:
    """The opening of a row's dialogue as the split rule sees it."""
    return normalised_text(opening(row["messages"]))


def newest_with_replay(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest batch of the domain's own pairs, and a seeded draw from the rest of the mix.

    The model has learnt the older batches in earlier versions. Replay keeps it on all
    distributions at a cost that does not grow with the number of weeks.
    """
    week = max((row["batch"] for row in rows if row["domain"] == config.domain), default=0)
    newest = [r for r in rows if r["batch"] == week and r["domain"] == config.domain]
    rest = [r for r in rows if r["batch"] != week or r["domain"] != config.domain]
    num_replayed = round(len(newest) * (1 - config.newest_share) / config.newest_share)
    order = shuffled(len(rest), seed_from(config.seed, config.domain, "replay", week))
    return newest + [rest[i] for i in order[:num_replayed]]


def fitted_scores(
    config: Config, engine: Engine, pairs: list[Pair], work: WorkDir
) -> Normalisation:
    """What the model's scores are normalised by, from some of the pairs that it was trained on.

    In one epoch each was learnt once, and two numbers over-fit little; the test sets say how much.
    """
    if not config.normalise_scores:
        return Normalisation()
    order = shuffled(len(pairs), seed_from(config.seed, "normalise"))[:NORMALISATION_PAIRS]
    chosen = [pairs[i] for i in order]
    with torch.no_grad():
        scores = torch.cat(list(score_pairs(engine, chosen, work.rank)))
    if config.domain is Domain.helpfulness:
        return normalisation.centre(scores)
    is_safe, labelled = safety_targets(chosen)
    return normalisation.fit(scores[labelled], is_safe[labelled])


def train(config: Config, model: RewardModel, pairs: list[Pair], work: WorkDir) -> Engine:
    """The ranking loss over seeded epochs; batch `step` is a pure function of the seed."""
    steps_per_epoch = math.ceil(len(pairs) / config.global_batch_size)
    num_steps = steps_per_epoch * config.num_epochs
    warmup_steps = max(config.min_warmup_steps, math.ceil(config.warmup_ratio * num_steps))
    warmup_steps = min(warmup_steps, num_steps - 1)  # a tiny run still has a peak
    optimizer = OptimizerSettings(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        gradient_clipping=config.gradient_clipping,
    )
    schedule = cosine_with_warmup(
        num_steps, warmup_steps, config.learning_rate, config.final_learning_rate_ratio
    )
    engine = Engine(model, optimizer, schedule, config.engine, work.rank)
    meter = Meter(config.engine.precision, work.rank)
    with Checkpointer(work.checkpoints, work.rank, config) as checkpointer:
        first_step, _ = checkpointer.restore({"reward": engine})
        for step in range(first_step, num_steps):
            epoch, index = divmod(step, steps_per_epoch)
            order = shuffled(len(pairs), config.seed, epoch)
            first = index * config.global_batch_size
            batch = [pairs[i] for i in order[first : first + config.global_batch_size]]
            with meter.step():
                stats = train_step(engine, batch, config, work)
            lengths = [len(side) for pair in batch for side in (pair.chosen, pair.rejected)]
            speed = meter.training(model, lengths)
            work.track(step, {**stats, **engine.last_step.as_metrics("train"), **speed})
            loss, tokens = stats["train/loss"], sum(lengths)
            work.progress(step + 1, num_steps, "step", loss=loss, tokens=tokens)
            checkpointer.maybe_save(step + 1, {"reward": engine})
    return engine


def train_step(
    engine: Engine, batch: list[Pair], config: Config, work: WorkDir
) -> dict[str, float]:
    """One optimizer step; loss and accuracy are means over the global batch's comparisons."""
    micro_batches = share_of_rank(batch, work.rank, config.micro_batch_size)
    totals = np.zeros(3)
    for i, pairs in enumerate(micro_batches):
        tokens, documents = flat_pairs(pairs, work.rank.device)
        scores = engine(tokens, documents)
        ranking, auxiliary, num_correct = losses(scores, pairs, config)
        loss = (ranking + config.safety_auxiliary_weight * auxiliary) / len(batch)
        engine.backward(loss, i == len(micro_batches) - 1, [p.id for p in pairs])
        totals += [loss.item(), ranking.item() / len(batch), num_correct / len(batch)]
    engine.step()
    loss, ranking, accuracy = (work.rank.sum(float(t)) for t in totals)
    return {"train/loss": loss, "train/ranking_loss": ranking, "train/accuracy": accuracy}


def losses(
    scores: torch.Tensor, pairs: list[Pair], config: Config
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Sums over the micro-batch: ranking loss with margin, safety-label loss, pairs ranked right.

    scores: (2P,), chosen sides first. The auxiliary loss of a pair is the mean over its two sides.
    """
    if not pairs:
        return scores.sum() * 0, scores.sum() * 0, 0.0
    chosen, rejected = scores.chunk(2)
    by_rating = MARGINS[config.margin]
    margin = torch.tensor([by_rating[p.rating] if p.rating else 0.0 for p in pairs])
    ranking = ranking_loss(chosen, rejected, margin.to(scores.device)).sum()
    auxiliary = scores.sum() * 0
    if config.domain is Domain.safety:
        is_safe, labelled = (t.to(scores.device) for t in safety_targets(pairs))
        auxiliary = safety_auxiliary_loss(scores, is_safe, labelled).sum() / 2
    return ranking, auxiliary, float((chosen > rejected).sum())


@torch.no_grad()
def evaluate(
    config: Config,
    score: Callable[[torch.Tensor, Documents], torch.Tensor],
    own: list[dict[str, Any]],
    open_source: list[dict[str, Any]],
    tokenizer: Tokenizer,
    work: WorkDir,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
    """Accuracy and calibration on each held-out set: both own domains, and the open-source data.

    The metrics are those of the set of the model's own domain.
    """
    test_sets = {
        **{d.value: [r for r in own if r["domain"] == d] for d in Domain},
        "open_source": open_source,
    }
    overlong = when_held_out(config.overlong)
    accuracies, calibration, metrics = [], [], {}
    for name, candidates in test_sets.items():
        held_out = [r for r in candidates if r["split"] == "test"]
        order = shuffled(len(held_out), seed_from(config.seed, "test", name))
        held_out = [held_out[i] for i in order[: config.max_test_pairs]]
        pairs = render_pairs(held_out, tokenizer, config.max_tokens, overlong)
        if not pairs:
            continue
        scores = score_pairs(score, pairs, work.rank)
        accuracies += accuracy_rows(config.domain.value, name, pairs, scores.margins)
        calibration += calibration_rows(config.domain.value, name, pairs, scores)
        if name == config.domain:
            metrics = own_set_metrics(config, pairs, scores, calibration)
    return accuracies, calibration, metrics


def own_set_metrics(
    config: Config, pairs: list[Pair], scores: PairScores, calibration: list[dict[str, Any]]
) -> dict[str, float]:
    """Calibration error, length bias, and the gate's quality for a Safety RM."""
    own = [row for row in calibration if row["test_set"] == config.domain]
    metrics = {"calibration_error/preferred": calibration_error(own, "preferred")}
    metrics |= length_bias(pairs, scores)
    if any(row["event"] == "safe" for row in own):
        metrics["calibration_error/safe"] = calibration_error(own, "safe")
        metrics |= gate_quality(pairs, scores, GATE_THRESHOLD)
    return metrics


if __name__ == "__main__":
    main(Config, run)
