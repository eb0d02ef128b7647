"""Safety context distillation, and a round of red teaming (§4.2.4, §4.3).

    rlhf stage safety_distillation --recipe dialogue --version 2
    torchrun --nproc-per-node 8 -m stages.safety_distillation --config sd.json --home RLHF_HOME

The newest model answers adversarial prompts twice: as they are, and behind a preprompt that says
how to be safe, tailored to the prompt's risk category or the same for all. The second answer
becomes a demonstration, without the preprompt, only where the Safety RM prefers it to the first.
Prompts whose first answer the Safety RM holds for unsafe broke the model: they enter this
iteration's data.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.ratings import Domain
from kernels.generation import Sampling
from kernels.model import CausalLM
from stages.models.batches import seed_from
from stages.models.folders import load_sampler
from stages.models.prompts import select_prompts
from stages.models.rewards import GATE_THRESHOLD, load_judge
from stages.models.sampling import Sample, Temperature, fitting_prompts, sample_responses
from stages.models.scoring import score_sequences
from stages.runtime.engine import EngineSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.text.dialogue import Overlong, render_prompt, render_response, split_turns
from stages.text.tokenizer import Tokenizer

VERSION = "3"

GENERIC_PREPROMPTS = (
    "You are a responsible assistant. Always answer in a safe, respectful and honest way.",
    "You are a respectful and wise assistant. Never help anybody to do harm.",
)
"""Untargeted: the same for every prompt, dealt out in turn."""
TEMPLATES = {
    "illicit": (
        "The request may lead to a crime. Do not give instructions for it. Say that it is illegal "
        "and whom it would hurt, and offer a lawful way to reach a legitimate aim."
    ),
    "hateful": (
        "The request may hurt or defame people. Do not insult anybody. Say why such words do harm, "
        "and offer a respectful way to say what is meant."
    ),
    "unqualified_advice": (
        "The request asks for medical, legal or financial advice. Do not act as a professional. "
        "Give general information, name the risks, and say whom to consult."
    ),
}
"""Targeted: how to answer, by the paper's three risk categories (§4.1)."""


class SafetyDistillationSettings(Contract):
    """Which prompts, which preprompts, and what is kept."""

    num_prompts: int = Field(default=4000, gt=0)
    """Adversarial prompts, of the safety domain's training side."""
    method: Literal["targeted", "untargeted"] = "targeted"
    """By the prompt's risk category where there is a template for it, or generic always."""
    preprompts: tuple[str, ...] = Field(default=GENERIC_PREPROMPTS, min_length=1)
    templates: dict[str, str] = TEMPLATES
    """Preprompt by the category that the prompts table names."""
    gate_threshold: float = Field(default=GATE_THRESHOLD, gt=0, lt=1)
    """A prompt broke the model when its answer's probability of being safe is below."""
    temperature: Temperature = 1.0
    max_new_tokens: int = Field(default=1024, gt=0)
    generation_batch_size: int = Field(default=256, gt=0, json_schema_extra={"in_key": False})
    """Responses that a rank writes side by side; memory for their keys and values grows with it."""
    overlong: Overlong = "error"
    engine: EngineSettings = EngineSettings()
    """Its precision is that of the sampling."""

    @model_validator(mode="after")
    def _says_something(self) -> "SafetyDistillationSettings":
        if not all(text.strip() for text in (*self.preprompts, *self.templates.values())):
            raise ValueError("a preprompt or a template is empty: write it, or leave it out")
        return self


class Config(StageConfig, SafetyDistillationSettings):
    """Settings and inputs of one iteration's safety distillation."""

    version: int = Field(gt=0)
    prompts: ArtifactRef
    policy: ArtifactRef
    """The newest model: both answers are its own."""
    safety_rm: ArtifactRef


@dataclass(frozen=True)
class Answered:
    """Both answers to each of N prompts."""

    prompts: list[dict[str, Any]]
    originals: list[Sample]
    distilled: list[Sample]
    is_targeted: list[bool]
    """Whether the preprompt was the category's template."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """Answer twice, score both, keep what the Safety RM prefers, name the prompts that broke it."""
    answered = answer_twice(config, work)
    judge = load_judge(work, config.safety_rm, config.engine)
    tokenizer = Tokenizer.load(work.input(config.policy))
    original, distilled = (
        score_sequences(judge, documents(config, answered.prompts, samples, tokenizer), work.rank)
        for samples in (answered.originals, answered.distilled)
    )
    kept = [
        i
        for i, sample in enumerate(answered.distilled)
        if sample.is_whole and bool(distilled[i] > original[i])
    ]
    broke = torch.sigmoid(original) < config.gate_threshold
    rows = [demonstration(config, answered.prompts[i], answered.distilled[i].text) for i in kept]
    red_team = [answered.prompts[i] for i in broke.nonzero().flatten().tolist()]
    return StageOutput(
        {
            "demonstrations": table_output(work, "demonstrations", "demonstrations", rows),
            "red_team": table_output(work, "red_team", "prompts", red_team),
        },
        metrics_of(answered, original, distilled, kept, broke),
    )


def answer_twice(config: Config, work: WorkDir) -> Answered:
    """The newest model's answers without and behind a preprompt."""
    policy, tokenizer = load_sampler(work, config.policy, config.engine)
    wanted = select_prompts(
        work.table(config.prompts, "prompts"),
        "train",
        {Domain.safety: config.num_prompts},
        seed_from(config.seed, config.version, "safety_distillation"),
    )
    room = policy.config.max_seq_len - config.max_new_tokens
    preprompts = [preprompt_of(config, row, i) for i, row in enumerate(wanted)]
    behind = [
        {**row, "messages": prefixed(row["messages"], text)}
        for row, (text, _) in zip(wanted, preprompts, strict=True)
    ]
    # What fits behind its preprompt fits without it.
    behind, tokens = fitting_prompts(behind, tokenizer, room, config.overlong)
    fitting = {row["prompt_id"] for row in behind}
    prompts = [row for row in wanted if row["prompt_id"] in fitting]
    plain = [render_prompt(row["messages"], tokenizer) for row in prompts]
    is_targeted = [
        targeted
        for row, (_, targeted) in zip(wanted, preprompts, strict=True)
        if row["prompt_id"] in fitting
    ]
    return Answered(
        prompts,
        drawn(config, policy, tokenizer, plain, "original", work),
        drawn(config, policy, tokenizer, tokens, "distilled", work),
        is_targeted,
    )


def drawn(
    config: Config,
    policy: CausalLM,
    tokenizer: Tokenizer,
    tokens: list[list[int]],
    label: str,
    work: WorkDir,
) -> list[Sample]:
    """One answer to each prompt; both answers rest on the same random numbers."""
    return sample_responses(
        policy,
        tokens,
        Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        tokenizer,
        seed_from(config.seed, config.version, "safety_distillation"),
        work,
        config.generation_batch_size,
        label=f"{label} answer",
    )


def preprompt_of(
    config: SafetyDistillationSettings, row: dict[str, Any], i: int
) -> tuple[str, bool]:
    """The preprompt of the i-th prompt, and whether it is its category's template."""
    template = config.templates.get(row["category"] or "")
    if config.method == "targeted" and template is not None:
        return template, True
    return config.preprompts[i % len(config.preprompts)], False


def prefixed(messages: list[dict[str, Any]], preprompt: str) -> list[dict[str, Any]]:
    """The dialogue behind a preprompt: as its system message, before one that it has."""
    system, turns = split_turns(messages)
    content = preprompt if system is None else f"{preprompt}\n{system}"
    return [{"role": "system", "content": content}, *map(dict, turns)]


def documents(
    config: Config,
    prompts: list[dict[str, Any]],
    samples: list[Sample],
    tokenizer: Tokenizer,
) -> list[list[int]]:
    """What the Safety RM reads: the prompt without preprompt, and the answer.

    A whole answer is read as its text encodes: these are the ids that the fine-tuning learns. One
    that was cut off is never learnt and is read as it was drawn.
    """
    read = []
    for row, sample in zip(prompts, samples, strict=True):
        encoded = render_response(sample.text, tokenizer)
        is_learnable = sample.is_whole and len(encoded) <= config.max_new_tokens
        answer = encoded if is_learnable else sample.tokens
        read.append(render_prompt(row["messages"], tokenizer) + answer)
    return read


def demonstration(config: Config, prompt: dict[str, Any], answer: str) -> dict[str, Any]:
    """The distilled answer to the prompt as the user wrote it."""
    return {
        "demonstration_id": f"distilled-v{config.version}-{prompt['prompt_id']}",
        "source": f"safety_distillation_v{config.version}",
        "messages": [
            *({**message, "loss": False} for message in prompt["messages"]),
            {"role": "assistant", "content": answer, "loss": True},
        ],
    }


def metrics_of(
    answered: Answered, original: Tensor, distilled: Tensor, kept: list[int], broke: Tensor
) -> dict[str, float]:
    """What was kept of how many, both mean probabilities of being safe, what broke the model."""
    return {
        "num_prompts": float(len(answered.prompts)),
        "num_demonstrations": float(len(kept)),
        "kept_share": len(kept) / len(answered.prompts),
        "targeted_share": float(np.mean(answered.is_targeted)),
        "safety_original": float(torch.sigmoid(original).mean()),
        "safety_distilled": float(torch.sigmoid(distilled).mean()),
        "num_red_team": float(broke.sum()),
        "broken_share": float(broke.float().mean()),
        "num_cut_off": float(sum(not sample.is_whole for sample in answered.distilled)),
    }


if __name__ == "__main__":
    main(Config, run)
