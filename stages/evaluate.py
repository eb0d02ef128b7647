"""Evaluate a version against SFT and the version before it, on held-out prompts (§3.4.1).

    rlhf stage evaluate --recipe demo --version 2
    torchrun --nproc-per-node 8 -m stages.evaluate --config evaluate.json --home RLHF_HOME

The judges are the iteration's own reward models and, in the sandbox, the gold judge, which no
training stage sees: reward-model score up and gold score down is reward hacking. Reported as well:
refusals of harmless prompts that sound harmful, and how long an instruction is kept (Table 30).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.ratings import Domain
from kernels.generation import Sampling
from stages.models.batches import seed_from
from stages.models.comparison import paired_difference, rate_row, win_rate_row
from stages.models.dialogues import hold
from stages.models.evaluation_figures import (
    GOLD,
    calibration_figure,
    judged_twice,
    retention_figure,
    save,
    win_rate_figure,
)
from stages.models.folders import load_sampler
from stages.models.prompts import PromptCounts, select_prompts
from stages.models.retention import (
    RETENTION,
    RetentionSettings,
    instructed_dialogues,
    retention_rates,
)
from stages.models.rewards import GATE_THRESHOLD, RewardModels
from stages.models.sampling import Temperature, fitting_prompts, sample_responses
from stages.runtime.engine import EngineSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.sandbox.judge import gold_scores
from stages.sandbox.retention import keeps
from stages.text.dialogue import Overlong
from stages.text.refusals import is_refusal

VERSION = "4"

REWARD_MODEL = "reward_model"
REFERENCE_VERSION = "sft"
FALSE_REFUSAL = "false_refusal"
ALL_HARMLESS = "all"
"""Group of the false refusals on every prompt of the helpfulness domain."""
BEFORE_PPO = "-rs"
"""Ending of the label of a version's rejection-sampling model, where PPO followed: "v5-rs"."""
STUDENT = "-student"
"""Ending of the label of the smaller model that learnt from a version's samples."""
CUT_OFF_HANDICAP = 1e4
"""More than any two scores of a reward model differ by, little enough for exact differences."""


class EvaluateSettings(Contract):
    """Which prompts, how responses are sampled, and who judges."""

    num_prompts: PromptCounts = {Domain.helpfulness: 1500, Domain.safety: 500}
    """Held-out prompts of each domain, from the test split."""
    temperature: Temperature = 1.0
    """1: the distribution that PPO optimises; 0 is greedy."""
    max_new_tokens: int = Field(default=1024, gt=0)
    generation_batch_size: int = Field(default=256, gt=0, json_schema_extra={"in_key": False})
    """Responses that a rank writes side by side; memory for their keys and values grows with it."""
    gate_threshold: float = Field(default=GATE_THRESHOLD, gt=0, lt=1)
    independent_judge: Literal["none", "sandbox"] = "none"
    """A judge beside the reward models; "sandbox" is the gold judge of the sandbox's world."""
    harmless_lookalikes: tuple[str, ...] = ("borderline",)
    """Categories of harmless prompts that sound harmful: refusals of them are counted apart."""
    retention: RetentionSettings | None = None
    """Dialogues that show how long an instruction is kept; needs the sandbox's judge."""
    overlong: Overlong = "error"
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _can_check_instructions(self) -> "EvaluateSettings":
        if self.retention is not None and self.independent_judge != "sandbox":
            raise ValueError(
                "retention is checked by the sandbox's judge: set independent_judge to sandbox, or "
                "leave retention out"
            )
        return self


class Config(StageConfig, EvaluateSettings):
    """Settings and inputs of one evaluation."""

    version: int = Field(gt=0)
    models: dict[str, ArtifactRef]
    """Model of each version by name ("sft", "v1", …), oldest first; "v5-rs" and the like stand
    before the version that they led to."""
    helpfulness_rm: ArtifactRef
    safety_rm: ArtifactRef
    prompts: ArtifactRef


def run(config: Config, work: WorkDir) -> StageOutput:
    """Every version answers the same prompts; score, compare, draw."""
    prompts = select_prompts(
        work.table(config.prompts, "prompts"),
        "test",
        config.num_prompts,
        seed_from(config.seed, "evaluate"),
    )
    reward_models = RewardModels.load(
        work, config.helpfulness_rm, config.safety_rm, config.gate_threshold, config.engine
    )
    rows: list[dict[str, Any]] = []
    for version in config.models:
        rows += answer(config, work, version, prompts, reward_models)
    win_rates = compare(config, rows)
    rates = [*false_refusals(config, rows), *kept_instructions(config, work)]

    return StageOutput(
        {
            "evaluations": table_output(work, "evaluations", "evaluations", rows),
            "win_rates": table_output(work, "win_rates", "win_rates", win_rates),
            "rates": table_output(work, "rates", "rates", rates),
            "figures": draw(work, rows, win_rates, rates),
        },
        {
            **mean_scores(rows),
            **gold_gains(config, rows),
            **judge_agreement(rows),
            **win_rate_metrics(win_rates),
            **{f"{r['measure']}/{r['group']}/{r['version']}": r["rate"] for r in rates},
        },
    )


def answer(
    config: Config,
    work: WorkDir,
    version: str,
    prompts: list[dict[str, Any]],
    reward_models: RewardModels,
) -> list[dict[str, Any]]:
    """One version's responses with all judges' scores, as rows of the evaluations table."""
    model, tokenizer = load_sampler(work, config.models[version], config.engine)
    max_prompt_tokens = model.config.max_seq_len - config.max_new_tokens
    kept, tokens = fitting_prompts(prompts, tokenizer, max_prompt_tokens, config.overlong)
    samples = sample_responses(
        model,
        tokens,
        Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        tokenizer,
        seed_from(config.seed, "evaluate"),
        work,
        config.generation_batch_size,
        label=f"{version} response",
    )
    scores = reward_models.score(
        [p + s.tokens for p, s in zip(tokens, samples, strict=True)],
        [row["domain"] == Domain.safety for row in kept],
        work,
    )
    rows = []
    for i, (prompt, sample) in enumerate(zip(kept, samples, strict=True)):
        row = {
            "evaluation_id": f"{version}-{prompt['prompt_id']}",
            "version": version,
            "prompt_id": prompt["prompt_id"],
            "domain": prompt["domain"],
            "category": prompt["category"],
            "messages": prompt["messages"],
            "response": sample.text,
            "finished": sample.finished,
            "helpfulness_score": float(scores.helpfulness[i]),
            "safety_score": float(scores.safety[i]),
            "gold_helpfulness": None,
            "gold_safety": None,
        }
        if config.independent_judge == "sandbox":
            verdict = gold_scores(
                prompt["messages"], sample.text, prompt["category"], sample.finished
            )
            row |= {"gold_helpfulness": verdict.helpfulness, "gold_safety": verdict.safety}
        rows.append(row)
    return rows


def compare(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Win rates of each version against SFT, the version before it, and models on the way to it."""
    versions = list(config.models)
    judges = [REWARD_MODEL] + ([GOLD] if config.independent_judge == "sandbox" else [])
    table = []
    for i, version in enumerate(versions[1:], start=1):
        for opponent in opponents(versions[:i], version):
            for domain in Domain:
                for name in judges:
                    own, other = paired(rows, version, opponent, domain, name)
                    if own:
                        table.append(win_rate_row(version, opponent, domain, name, own, other))
    return table


def opponents(earlier: list[str], version: str) -> list[str]:
    """What a version is compared with, of all that stand before it in the evaluation.

    The first and the newest version, and the models on the way to this one ("v5-rs" of "v5").
    """
    on_the_way = [label for label in earlier if label.startswith(f"{version}-")]
    versions = [label for label in earlier if "-" not in label]
    return list(dict.fromkeys([versions[0], versions[-1], *on_the_way]))


def paired(
    rows: list[dict[str, Any]], version: str, opponent: str, domain: Domain, judged_by: str
) -> tuple[list[float], list[float]]:
    """Both versions' scores on the prompts of one domain, in the same order.

    The gold judge marks a cut-off response down by itself. A reward model read its score in the
    middle of a sentence, so there a cut-off response ranks below every one that ended: as in
    rejection sampling, where it is never the best, and in PPO, where it is paid a fixed low score.
    """
    column = f"gold_{domain}" if judged_by == GOLD else f"{domain}_score"
    by_version: dict[str, dict[str, float]] = {version: {}, opponent: {}}
    for row in rows:
        if row["domain"] == domain and row["version"] in by_version:
            handicap = 0.0 if judged_by == GOLD or row["finished"] else CUT_OFF_HANDICAP
            by_version[row["version"]][row["prompt_id"]] = row[column] - handicap
    own, other = by_version[version], by_version[opponent]
    shared = sorted(own.keys() & other.keys())
    return [own[p] for p in shared], [other[p] for p in shared]


def false_refusals(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often each version refuses harmless prompts: all, and those that sound harmful."""
    table = []
    for version in config.models:
        own = [r for r in rows if r["version"] == version and r["domain"] == Domain.helpfulness]
        groups = {ALL_HARMLESS: own} | {
            name: [r for r in own if r["category"] == name] for name in config.harmless_lookalikes
        }
        for group, answered in groups.items():
            if answered:
                verdicts = [is_refusal(row["response"]) for row in answered]
                table.append(rate_row(FALSE_REFUSAL, version, group, verdicts))
    return table


def kept_instructions(config: Config, work: WorkDir) -> list[dict[str, Any]]:
    """Each version holds the same dialogues; the instruction stands in the first turn only."""
    if config.retention is None:
        return []
    seed = seed_from(config.seed, "retention")
    num_prompts = config.retention.num_dialogues * config.retention.num_turns
    prompts = select_prompts(
        work.table(config.prompts, "prompts"), "test", {Domain.helpfulness: num_prompts}, seed
    )
    asked = instructed_dialogues(prompts, config.retention, seed)
    table = []
    for version, ref in config.models.items():
        model, tokenizer = load_sampler(work, ref, config.engine)
        talks = hold(
            [dialogue for dialogue, _ in asked],
            "first_turn",
            model,
            tokenizer,
            Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
            seed,
            work,
            config.generation_batch_size,
            label=f"{version} turn",
        )
        instructions = [instruction for _, instruction in asked]
        table += retention_rates(version, talks.dialogues, instructions, keeps)
    return table


def mean_scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every judge's score by version and domain, and by version and task family."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        domain = row["domain"]
        sums.setdefault(f"rm/{domain}/{row['version']}", []).append(row[f"{domain}_score"])
        if row["gold_helpfulness"] is not None:
            gold = row[f"gold_{domain}"]
            sums.setdefault(f"gold/{domain}/{row['version']}", []).append(gold)
            sums.setdefault(f"family/{row['category']}/{row['version']}", []).append(gold)
        sums.setdefault(f"finished/{row['version']}", []).append(float(row["finished"]))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def gold_gains(config: Config, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Gold score of the newest version minus SFT's, on the same prompts, with 95 % bounds."""
    if config.independent_judge == "none":
        return {}
    newest = list(config.models)[-1]
    metrics = {}
    for domain in Domain:
        own, other = paired(rows, newest, REFERENCE_VERSION, domain, GOLD)
        if own:
            gain = paired_difference(own, other)
            metrics |= {
                f"gold_gain/{domain}": gain.mean,
                f"gold_gain_low/{domain}": gain.low,
                f"gold_gain_high/{domain}": gain.high,
            }
    return metrics


def judge_agreement(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Rank correlation of the reward model's and the independent judge's scores, by domain, over
    all versions' answers that ended."""
    metrics = {}
    for domain in Domain:
        scores, gold = judged_twice(rows, domain)
        if len(set(scores)) > 1 and len(set(gold)) > 1:
            import pandas as pd  # here, since recipes import this file and have no use for it

            ranks = [np.asarray(pd.Series(values).rank()) for values in (scores, gold)]
            # Spearman's is Pearson's of the ranks
            metrics[f"judge_agreement/{domain}"] = float(np.corrcoef(ranks)[0, 1])
    return metrics


def win_rate_metrics(win_rates: list[dict[str, Any]]) -> dict[str, float]:
    """Win rates under names that MLflow can chart."""
    return {
        f"win_rate/{r['domain']}/{r['judge']}/{r['version']}_vs_{r['opponent']}": r["win_rate"]
        for r in win_rates
    }


def draw(
    work: WorkDir,
    rows: list[dict[str, Any]],
    win_rates: list[dict[str, Any]],
    rates: list[dict[str, Any]],
) -> tuple[Path, str]:
    """Every figure that there is something to show in."""
    folder = work.output("figures")
    if work.rank.is_main:
        series = [r for r in win_rates if r["opponent"] == REFERENCE_VERSION]
        save(win_rate_figure(series), folder / "win_rates.png")
        if any(judged_twice(rows, domain)[0] for domain in Domain):
            save(calibration_figure(rows), folder / "calibration.png")
        if kept := [r for r in rates if r["measure"] == RETENTION]:
            save(retention_figure(kept), folder / "retention.png")
    return folder, "figures"


if __name__ == "__main__":
    main(Config, run)
