"""Sample two responses to each prompt, for an annotator to compare (§3.2.1).

    rlhf stage sample_pairs --recipe demo --version 1
    torchrun --nproc-per-node 8 -m stages.sample_pairs --config pairs.json --home RLHF_HOME

The two responses come from two model variants and at varied temperatures, so that the pairs are
diverse; which of them stands first is random.
"""

from typing import Any

import numpy as np
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.ratings import Domain
from kernels.generation import Sampling
from stages.models.batches import seed_from, shuffled
from stages.models.folders import load_sampler
from stages.models.prompts import PromptCounts, select_prompts
from stages.models.sampling import Sample, Temperature, fitting_prompts, sample_responses
from stages.runtime.engine import EngineSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.text.dialogue import Overlong

VERSION = "1"


class SamplePairsSettings(Contract):
    """How many prompts and how their responses are sampled."""

    num_prompts: PromptCounts = {Domain.helpfulness: 4000, Domain.safety: 4000}
    """Prompts of each domain in one weekly batch."""
    temperatures_a: tuple[Temperature, ...] = (0.7, 1.0)
    """Temperatures of the newest model's responses, taken in turn."""
    temperatures_b: tuple[Temperature, ...] = (1.0, 1.3)
    """Temperatures of the other variant's responses."""
    max_new_tokens: int = Field(default=1024, gt=0)
    generation_batch_size: int = Field(default=256, gt=0, json_schema_extra={"in_key": False})
    """Responses that a rank writes side by side; memory for their keys and values grows with it."""
    overlong: Overlong = "error"
    engine: EngineSettings = EngineSettings()
    """Its precision is that of the sampling."""


class Config(StageConfig, SamplePairsSettings):
    """Settings and inputs of one weekly batch."""

    batch: int
    """Week number: the iteration that this batch is for."""
    prompts: ArtifactRef
    model_a: ArtifactRef
    model_b: ArtifactRef
    label_a: str
    """Version name of model_a, as written to the table."""
    label_b: str


def run(config: Config, work: WorkDir) -> StageOutput:
    """Choose this week's prompts, sample both sides, drop identical pairs, write comparisons."""
    week_seed = seed_from(config.seed, config.batch)
    prompts = select_prompts(
        work.table(config.prompts, "prompts"), "train", config.num_prompts, week_seed
    )
    prompts, side_a, temperatures_a = sample_side(config, work, prompts, is_a=True)
    _, side_b, temperatures_b = sample_side(config, work, prompts, is_a=False)

    flips = np.random.default_rng([week_seed, 1]).random(len(prompts)) < 0.5
    rows = []
    for i, prompt in enumerate(prompts):
        newest = (side_a[i].text, config.label_a, temperatures_a[i])
        other = (side_b[i].text, config.label_b, temperatures_b[i])
        if is_comparable(newest[0], other[0]):
            first, second = (other, newest) if flips[i] else (newest, other)
            rows.append(comparison(config.batch, prompt, first, second))

    return StageOutput(
        {"comparisons": table_output(work, "comparisons", "comparisons", rows)},
        {
            "num_comparisons": float(len(rows)),
            "num_dropped_identical_or_empty": float(len(prompts) - len(rows)),
        },
    )


def sample_side(
    config: Config, work: WorkDir, prompts: list[dict[str, Any]], is_a: bool
) -> tuple[list[dict[str, Any]], list[Sample], list[float]]:
    """Responses of one model variant, its temperatures dealt out in turn over the prompts."""
    ref = config.model_a if is_a else config.model_b
    model, tokenizer = load_sampler(work, ref, config.engine)
    temperatures = config.temperatures_a if is_a else config.temperatures_b
    max_prompt_tokens = model.config.max_seq_len - config.max_new_tokens
    prompts, tokens = fitting_prompts(prompts, tokenizer, max_prompt_tokens, config.overlong)
    order = shuffled(len(prompts), config.seed, config.batch, is_a)
    samples: dict[int, Sample] = {}
    for t, temperature in enumerate(temperatures):
        chosen = [int(i) for i in order[t :: len(temperatures)]]
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=temperature)
        seed = seed_from(config.seed, config.batch, is_a, t)
        responses = sample_responses(
            model,
            [tokens[i] for i in chosen],
            sampling,
            tokenizer,
            seed,
            work,
            config.generation_batch_size,
        )
        samples.update(zip(chosen, responses, strict=True))
    used = {int(i): temperatures[k % len(temperatures)] for k, i in enumerate(order)}
    in_order = range(len(prompts))
    return prompts, [samples[i] for i in in_order], [used[i] for i in in_order]


def is_comparable(first: str, second: str) -> bool:
    """Whether an annotator could choose between the two."""
    return bool(first.strip()) and bool(second.strip()) and first.strip() != second.strip()


def comparison(
    batch: int, prompt: dict[str, Any], a: tuple[str, str, float], b: tuple[str, str, float]
) -> dict[str, Any]:
    """One row of the comparisons table."""
    return {
        "comparison_id": f"v{batch}-{prompt['prompt_id']}",
        "prompt_id": prompt["prompt_id"],
        "domain": prompt["domain"],
        "batch": batch,
        "category": prompt["category"],
        "messages": prompt["messages"],
        "response_a": a[0],
        "response_b": b[0],
        "model_a": a[1],
        "model_b": b[1],
        "temperature_a": a[2],
        "temperature_b": b[2],
    }


if __name__ == "__main__":
    main(Config, run)
