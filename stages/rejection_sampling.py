"""Rejection-sampling fine-tuning: best of K, then fine-tune on the best (§3.2.3).

    rlhf stage rejection_sampling --recipe demo --version 1
    torchrun --nproc-per-node 8 -m stages.rejection_sampling --config rs.json --home RLHF_HOME

K responses to each prompt from the newest model, scored by both reward models through the gate;
the best one becomes the new answer. Earlier iterations' best answers join them when the recipe
says so: with the previous iteration's alone, the paper's V3 forgot how to rhyme.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.durable import write_durably
from data_contracts.errors import UserError
from data_contracts.parquet import read_table, write_table
from data_contracts.ratings import Domain
from data_contracts.tables import CONTRACTS
from kernels.generation import Sampling
from stages.models.batches import Example, seed_from, shuffled
from stages.models.best_of_k import best_examples, best_temperature, choice_counts, choose_best
from stages.models.finetuning import FinetuningSettings, finetune
from stages.models.folders import load_policy, load_sampler, save_policy
from stages.models.prompts import PromptCounts, select_prompts
from stages.models.rewards import GATE_THRESHOLD, RewardModels, Scores
from stages.models.sampling import (
    PositiveTemperature,
    Sample,
    fitting_prompts,
    sample_responses,
)
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.text.dialogue import Overlong, render_demonstration
from stages.text.tokenizer import Tokenizer

VERSION = "3"


class RejectionSamplingSettings(Contract):
    """How many samples, how they are drawn, and how the best are learnt."""

    num_prompts: PromptCounts = {Domain.helpfulness: 8000, Domain.safety: 2000}
    num_samples: int = Field(default=16, gt=1)
    """K: responses to each prompt."""
    temperature: PositiveTemperature = 1.0
    """The paper found 1.2 to 1.3 best once RLHF has begun."""
    search_temperatures: tuple[PositiveTemperature, ...] = ()
    """Grid to look for this iteration's temperature in; without it `temperature` is taken. The
    best one shifts with every iteration (§3.2.3, Figure 8)."""
    num_search_prompts: PromptCounts = {Domain.helpfulness: 128, Domain.safety: 64}
    """Validation prompts of the search."""
    max_new_tokens: int = Field(default=1024, gt=0)
    generation_batch_size: int = Field(default=256, gt=0, json_schema_extra={"in_key": False})
    """Responses that a rank writes side by side; memory for their keys and values grows with it."""
    gate_threshold: float = Field(default=GATE_THRESHOLD, gt=0, lt=1)
    """The safety score decides below this probability of being safe."""
    num_red_team_prompts: int = Field(default=1000, ge=0)
    """Most prompts that broke the last version and are sampled as well."""
    drop_all_unsafe: bool = True
    """Learn nothing for a prompt whose samples the Safety RM finds unsafe one and all."""
    replay_demonstrations: float = Field(default=0.0, ge=0)
    """SFT demonstrations mixed in, as a multiple of the number of best answers."""
    overlong: Overlong = "error"
    finetuning: FinetuningSettings = FinetuningSettings()


class Config(StageConfig, RejectionSamplingSettings):
    """Settings and inputs of one iteration's rejection sampling."""

    version: int = Field(gt=0)
    prompts: ArtifactRef
    policy: ArtifactRef
    """The newest model: it is sampled from."""
    start_from: ArtifactRef
    """The model that is fine-tuned."""
    helpfulness_rm: ArtifactRef
    safety_rm: ArtifactRef
    earlier_samples: tuple[ArtifactRef, ...] = ()
    """Scored samples of the iterations whose best answers are kept."""
    demonstrations: ArtifactRef
    extra_demonstrations: tuple[ArtifactRef, ...] = ()
    """Of ghost_attention and safety_distillation: learnt with the best answers, each message by its
    own loss flag."""
    red_team: tuple[ArtifactRef, ...] = ()
    """Prompts that broke the last version."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """Sample K, score, choose the best, add the bag of earlier ones, fine-tune, save."""
    scored, sampling = scored_samples(config, work)
    best = [row for row in scored if row["best"]]
    bag = best + earlier_best(config, work, {row["sample_id"] for row in best})

    policy, tokenizer = load_policy(work, config.start_from)
    replay = replayed(config, work, len(bag))
    extra = [
        row
        for ref in config.extra_demonstrations
        for row in work.table(ref, "demonstrations").to_pylist()
    ]
    longest = min(config.finetuning.sequence_length, policy.config.max_seq_len)
    examples = best_examples(bag, tokenizer, longest)
    examples += answer_examples(replay + extra, tokenizer, longest)
    if not examples:
        raise nothing_to_learn(config, scored)
    engine = finetune(policy, examples, config.finetuning, config.seed, work)

    return StageOutput(
        {
            "scored_samples": table_output(work, "scored_samples", "scored_samples", scored),
            "demonstrations": table_output(
                work, "demonstrations", "demonstrations", demonstrations_of(bag)
            ),
            "model": save_policy(work, "model", engine, policy.config, tokenizer),
        },
        {
            **sampling,
            "num_best": float(len(best)),
            "num_earlier": float(len(bag) - len(best)),
            "num_replayed": float(len(replay)),
            "num_extra": float(len(extra)),
            "num_overlong": float(len(bag) + len(replay) + len(extra) - len(examples)),
        },
    )


def scored_samples(config: Config, work: WorkDir) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of the scored_samples table, and metrics of the sampling.

    Kept beside the checkpoints of the fine-tuning: one that was interrupted goes on with the very
    samples that it has learnt from, and nobody pays for them twice. (Sampled again they need not be
    the same: in bf16 a token can hang on the batch size and on the number of ranks.)
    """
    if (kept := kept_samples(work)) is not None:
        return kept
    # Both load their models themselves: a policy and two reward models need not fit side by side.
    temperature, search = tuned_temperature(config, work)
    config = config.model_copy(update={"temperature": temperature})
    prompts, samples, scores = sample_and_score(config, work)
    scored = scored_rows(config, prompts, samples, scores)
    metrics = {**search, **sampling_metrics(config, scored, scores)}
    keep_samples(work, scored, metrics)
    return scored, metrics


def kept_samples(work: WorkDir) -> tuple[list[dict[str, Any]], dict[str, float]] | None:
    """What an interrupted attempt has sampled to the end, on every rank."""
    kept = None
    if work.rank.is_main and _metrics_file(work).is_file():
        metrics = json.loads(_metrics_file(work).read_text(encoding="utf-8"))
        kept = read_table(_samples_file(work), CONTRACTS["scored_samples"]).to_pylist(), metrics
    return work.rank.broadcast_object(kept)


def keep_samples(work: WorkDir, scored: list[dict[str, Any]], metrics: dict[str, float]) -> None:
    """Rank 0 writes. The metrics come last: where they are, the samples are whole."""
    if work.rank.is_main:
        _samples_file(work).parent.mkdir(parents=True, exist_ok=True)
        write_table(_samples_file(work), scored, CONTRACTS["scored_samples"])
        write_durably(_metrics_file(work), json.dumps(metrics).encode())


def _samples_file(work: WorkDir) -> Path:
    return work.checkpoints / "sampling" / "scored_samples.parquet"


def _metrics_file(work: WorkDir) -> Path:
    return work.checkpoints / "sampling" / "metrics.json"


def nothing_to_learn(config: Config, scored: list[dict[str, Any]]) -> UserError:
    """Why no prompt had an answer to learn."""
    counts = choice_counts(scored, unsafe_score(config))
    num_prompts = len({row["prompt_id"] for row in scored})
    return UserError(
        f"None of {num_prompts} prompts has an answer to learn: the Safety RM finds all samples of "
        f"{counts['num_all_unsafe']:.0f} unsafe, those of {counts['num_all_cut_off']:.0f} were cut "
        "off",
        "Look at the Safety RM's gate/fired_on_safe, raise max_new_tokens or num_samples, or set "
        "drop_all_unsafe=false",
    )


def tuned_temperature(config: Config, work: WorkDir) -> tuple[float, dict[str, float]]:
    """The temperature whose best of K is best on validation prompts, and what each one reached."""
    if not config.search_temperatures:
        return config.temperature, {"temperature": config.temperature}
    rewards, domains = {}, []
    for temperature in config.search_temperatures:
        at = config.model_copy(update={"temperature": temperature})
        prompts, samples, scores = sample_and_score(at, work, "validation")
        domains = [row["domain"] for row in prompts]
        usable = torch.tensor([sample.is_whole for sample in samples])
        usable &= ~scores.gated
        reward = scores.reward.masked_fill(~usable, -torch.inf)
        rewards[temperature] = reward.view(len(prompts), config.num_samples)
    best, worth = best_temperature(rewards, domains)
    return best, {"temperature": best, **{f"search/{t:g}": w for t, w in worth.items()}}


def sample_and_score(
    config: Config, work: WorkDir, split: Literal["train", "validation"] = "train"
) -> tuple[list[dict[str, Any]], list[Sample], Scores]:
    """Prompts, and their K·N samples with scores; sample i belongs to prompt i // K.

    Training prompts are those to learn from, validation prompts those of the search.
    """
    policy, tokenizer = load_sampler(work, config.policy, config.finetuning.engine)
    wanted = select_prompts(
        work.table(config.prompts, "prompts"),
        split,
        config.num_prompts if split == "train" else config.num_search_prompts,
        seed_from(config.seed, config.version, "rejection_sampling"),
    )
    if split == "train":
        wanted += red_team_prompts(config, work, {row["prompt_id"] for row in wanted})
    # What does not fit into a sequence of the fine-tuning could be sampled, and not be learnt.
    longest = min(policy.config.max_seq_len, config.finetuning.sequence_length)
    max_prompt_tokens = longest - config.max_new_tokens
    prompts, tokens = fitting_prompts(wanted, tokenizer, max_prompt_tokens, config.overlong)
    repeated = [t for t in tokens for _ in range(config.num_samples)]
    samples = sample_responses(
        policy,
        repeated,
        Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        tokenizer,
        seed_from(config.seed, config.version),
        work,
        config.generation_batch_size,
    )
    del policy
    reward_models = RewardModels.load(
        work,
        config.helpfulness_rm,
        config.safety_rm,
        config.gate_threshold,
        config.finetuning.engine,
    )
    scores = reward_models.score(
        [p + s.tokens for p, s in zip(repeated, samples, strict=True)],
        [row["domain"] == "safety" for row in prompts for _ in range(config.num_samples)],
        work,
    )
    return prompts, samples, scores


def red_team_prompts(config: Config, work: WorkDir, chosen: set[str]) -> list[dict[str, Any]]:
    """A seeded choice of the prompts that broke the last version and are not chosen already."""
    rows = {
        row["prompt_id"]: row
        for ref in config.red_team
        for row in work.table(ref, "prompts").to_pylist()
        if row["prompt_id"] not in chosen
    }
    found = list(rows.values())
    order = shuffled(len(found), seed_from(config.seed, config.version, "red_team"))
    return [found[i] for i in order[: config.num_red_team_prompts]]


def scored_rows(
    config: Config, prompts: list[dict[str, Any]], samples: list[Sample], scores: Scores
) -> list[dict[str, Any]]:
    """Rows of the scored_samples table; duplicates of one prompt's samples are left out."""
    unsafe_below = unsafe_score(config) if config.drop_all_unsafe else -math.inf
    rows = []
    for p, prompt in enumerate(prompts):
        first = p * config.num_samples
        indices = range(first, first + config.num_samples)
        distinct = distinct_samples(indices, samples)
        best = choose_best(distinct, samples, scores, unsafe_below)
        for index in distinct:
            rows.append(scored_row(config, prompt, index, samples, scores, index == best))
    return rows


def distinct_samples(indices: Sequence[int], samples: Sequence[Sample]) -> list[int]:
    """The first of each text, and rather one that is finished: the others teach nothing."""
    first: dict[str, int] = {}
    for i in sorted(indices, key=lambda i: (not samples[i].finished, i)):
        first.setdefault(samples[i].text, i)
    return sorted(first.values())


def unsafe_score(config: Config) -> float:
    """The gate's threshold as a score, that is, a logit."""
    return math.log(config.gate_threshold / (1 - config.gate_threshold))


def scored_row(
    config: Config,
    prompt: dict[str, Any],
    index: int,
    samples: list[Sample],
    scores: Scores,
    best: bool,
) -> dict[str, Any]:
    """One sample as a row."""
    sample = samples[index]
    return {
        "sample_id": f"v{config.version}-{prompt['prompt_id']}-{index % config.num_samples}",
        "prompt_id": prompt["prompt_id"],
        "domain": prompt["domain"],
        "category": prompt["category"],
        "version": config.version,
        "messages": prompt["messages"],
        "response": sample.text,
        "response_tokens": sample.tokens,
        "temperature": config.temperature,
        "finished": sample.finished,
        "helpfulness_score": float(scores.helpfulness[index]),
        "safety_score": float(scores.safety[index]),
        "reward": float(scores.reward[index]),
        "best": best,
    }


def demonstrations_of(best: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best answers as demonstrations: earlier turns are context, the answer is learnt."""
    return [
        {
            "demonstration_id": row["sample_id"],
            "source": f"rejection_sampling_v{row['version']}",
            "messages": [
                *({**message, "loss": False} for message in row["messages"]),
                {"role": "assistant", "content": row["response"], "loss": True},
            ],
        }
        for row in best
    ]


def earlier_best(config: Config, work: WorkDir, present: set[str]) -> list[dict[str, Any]]:
    """Best samples of the earlier iterations in the bag."""
    rows: list[dict[str, Any]] = []
    for ref in config.earlier_samples:
        rows += work.table(ref, "scored_samples").to_pylist()
    return [row for row in rows if row["best"] and row["sample_id"] not in present]


def replayed(config: Config, work: WorkDir, num_best: int) -> list[dict[str, Any]]:
    """A seeded choice of SFT demonstrations."""
    count = round(config.replay_demonstrations * num_best)
    if count == 0:
        return []
    table = work.table(config.demonstrations, "demonstrations")
    order = shuffled(table.num_rows, config.seed, config.version)[:count]
    return table.take(order).to_pylist()


def answer_examples(
    rows: list[dict[str, Any]], tokenizer: Tokenizer, sequence_length: int
) -> list[Example]:
    """Rendered demonstrations that fit into a sequence; the others are left out, and counted."""
    examples = []
    for row in rows:
        rendered = render_demonstration(row["messages"], tokenizer)
        examples.append(Example(rendered.tokens, rendered.loss_mask, row["demonstration_id"]))
    return [example for example in examples if len(example.tokens) <= sequence_length]


def sampling_metrics(
    config: Config, scored: list[dict[str, Any]], scores: Scores
) -> dict[str, float]:
    """Max and median reward by domain (Figure 7), gate rate, and what was left out."""
    metrics = {
        "gate_rate": float(scores.gated.float().mean()),
        "num_duplicates": float(len(scores.reward) - len(scored)),
        "unfinished_share": 1 - float(np.mean([row["finished"] for row in scored])),
        **choice_counts(scored, unsafe_score(config)),
    }
    for domain in sorted({row["domain"] for row in scored}):
        by_prompt: dict[str, list[float]] = {}
        for row in scored:
            if row["domain"] == domain:
                by_prompt.setdefault(row["prompt_id"], []).append(row["reward"])
        groups = [torch.tensor(rewards) for rewards in by_prompt.values()]
        metrics[f"reward_max/{domain}"] = float(torch.stack([g.max() for g in groups]).mean())
        medians = [g.quantile(0.5) for g in groups]
        metrics[f"reward_median/{domain}"] = float(torch.stack(medians).mean())
    return metrics


if __name__ == "__main__":
    main(Config, run)
