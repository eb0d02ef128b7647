"""Ghost Attention: dialogues in which an instruction of the first turn still holds (§3.3, A.3.5).

    rlhf stage ghost_attention --recipe dialogue --version 2
    torchrun --nproc-per-node 8 -m stages.ghost_attention --config gatt.json --home RLHF_HOME

The newest model answers with the instruction before every user message. The demonstrations keep it
in the first turn only, half of the time in few words, and only the last answer carries a loss:
earlier answers may have been given without the instruction. The next fine-tuning learns them.
"""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.errors import UserError
from data_contracts.ratings import Domain
from kernels.generation import Sampling
from kernels.model import CausalLM
from stages.models.batches import seed_from
from stages.models.dialogues import Dialogue, Talks, hold, joined_dialogues
from stages.models.folders import load_sampler
from stages.models.instructions import (
    PAPER_ATTRIBUTES,
    Attribute,
    Instruction,
    combine,
    distinct,
    listed_values,
)
from stages.models.prompts import PromptCounts, select_prompts
from stages.models.sampling import Temperature, sample_responses
from stages.runtime.engine import EngineSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.text.dialogue import render_prompt
from stages.text.tokenizer import Tokenizer

VERSION = "2"


class GhostAttentionSettings(Contract):
    """How many dialogues, what is asked to hold in them, and how answers are drawn."""

    num_prompts: PromptCounts = {Domain.helpfulness: 8000}
    """Rows of the prompts table. One that is a dialogue stays one; single questions are joined."""
    max_turns: int = Field(default=5, ge=2)
    """Most questions that are joined to a dialogue; 2 is the least, all numbers equally often."""
    attributes: tuple[Attribute, ...] = Field(default=PAPER_ATTRIBUTES, min_length=1)
    num_lists: int = Field(default=8, ge=0)
    """How often the chat model is asked for an attribute's values; all it lists is taken."""
    short_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the demonstrations whose instruction is shortened."""
    instruction_as: Literal["system_message", "user_message"] = "system_message"
    """Where the demonstrations have the instruction: as (or under) the dialogue's system message,
    or before the first question."""
    temperature: Temperature = 1.0
    max_new_tokens: int = Field(default=1024, gt=0)
    generation_batch_size: int = Field(default=256, gt=0, json_schema_extra={"in_key": False})
    """Responses that a rank writes side by side; memory for their keys and values grows with it."""
    engine: EngineSettings = EngineSettings()
    """Its precision is that of the sampling."""


class Config(StageConfig, GhostAttentionSettings):
    """Settings and inputs of one iteration's Ghost Attention."""

    version: int = Field(gt=0)
    prompts: ArtifactRef
    policy: ArtifactRef
    """The newest model: it answers, and it makes the lists."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """List values, combine instructions, hold the dialogues, keep the instruction in turn one."""
    policy, tokenizer = load_sampler(work, config.policy, config.engine)
    values = attribute_values(config, policy, tokenizer, work)
    asked = dialogues_of(config, work)
    rng = np.random.default_rng(seed_from(config.seed, config.version, "instructions"))
    instructions = [combine(config.attributes, values, rng) for _ in asked]
    is_short = (rng.random(len(asked)) < config.short_share).tolist()

    talks = hold(
        [under(d, i.full) for d, i in zip(asked, instructions, strict=True)],
        "every_turn",
        policy,
        tokenizer,
        Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        seed_from(config.seed, config.version, "ghost_attention"),
        work,
        config.generation_batch_size,
    )
    rows = [
        demonstration(config, held, instruction.short if short else instruction.full)
        for before, held, instruction, short in zip(
            asked, talks.dialogues, instructions, is_short, strict=True
        )
        if has_grown(before, held)
    ]
    if not rows:
        raise UserError(
            f"None of {len(asked)} dialogues came to a second answer within the model's context: "
            f"{talks.num_without_room} had no room left, {talks.num_cut_off} had an answer that "
            "was cut off or said nothing",
            "For want of room lower ghost_attention.max_new_tokens or supply shorter prompts; "
            "where answers are cut off raise it",
        )
    return StageOutput(
        {"demonstrations": table_output(work, "demonstrations", "demonstrations", rows)},
        metrics_of(rows, talks, values, instructions),
    )


def attribute_values(
    config: Config, policy: CausalLM, tokenizer: Tokenizer, work: WorkDir
) -> dict[str, list[str]]:
    """Each attribute's own values and those that the chat model lists."""
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    values = {}
    for attribute in config.attributes:
        listed: list[str] = []
        if attribute.question and config.num_lists:
            prompt = render_prompt([{"role": "user", "content": attribute.question}], tokenizer)
            check_room(config, attribute, len(prompt), policy.config.max_seq_len)
            answers = sample_responses(
                policy,
                [prompt] * config.num_lists,
                sampling,
                tokenizer,
                seed_from(config.seed, config.version, attribute.name),
                work,
                config.generation_batch_size,
                label=f"list of {attribute.name}",
            )
            listed = [v for answer in answers for v in listed_values(answer.text, answer.finished)]
        values[attribute.name] = distinct([*attribute.values, *listed])
        if not values[attribute.name]:
            raise UserError(
                f"The newest model listed nothing for the attribute {attribute.name}",
                "Give ghost_attention.attributes some values of their own",
            )
    return values


def check_room(config: Config, attribute: Attribute, num_tokens: int, context: int) -> None:
    """Raise UserError when the question for an attribute's values leaves no room for the answer."""
    room = context - config.max_new_tokens
    if num_tokens > room:
        raise UserError(
            f"The question for values of {attribute.name} has {num_tokens} tokens; the model's "
            f"context of {context} leaves {room} beside an answer of {config.max_new_tokens}",
            "Lower ghost_attention.max_new_tokens, or set ghost_attention.num_lists=0 and give the "
            "attributes values of their own",
        )


def dialogues_of(config: Config, work: WorkDir) -> list[Dialogue]:
    """This iteration's dialogues, without an instruction. Raises UserError when there is none."""
    seed = seed_from(config.seed, config.version, "ghost_attention")
    rows = select_prompts(work.table(config.prompts, "prompts"), "train", config.num_prompts, seed)
    lengths = np.random.default_rng(seed).integers(2, config.max_turns + 1, size=len(rows))
    dialogues = joined_dialogues(rows, lengths.tolist())
    if not dialogues:
        raise UserError(
            f"{len(rows)} prompts make no dialogue: single questions are joined to one when at "
            "least two stand under the same system message, or under none",
            "Raise ghost_attention.num_prompts, or supply dialogues of several turns",
        )
    return dialogues


def under(dialogue: Dialogue, instruction: str) -> Dialogue:
    """The dialogue with an instruction that is to hold throughout."""
    return Dialogue(dialogue.id, dialogue.questions, dialogue.answers, dialogue.system, instruction)


def has_grown(before: Dialogue, held: Dialogue) -> bool:
    """Whether the last answer was given under the instruction, and not in the first turn."""
    return len(held.answers) > max(len(before.answers), 1)


def demonstration(config: Config, held: Dialogue, instruction: str) -> dict[str, Any]:
    """A row that has the instruction in its first turn and a loss on its last answer alone."""
    as_system = config.instruction_as == "system_message"
    system = "\n".join(filter(None, (held.system, instruction))) if as_system else held.system
    row = Dialogue(held.id, held.questions, held.answers, system, "" if as_system else instruction)
    messages = row.messages("first_turn")
    last = len(messages) - 1
    return {
        "demonstration_id": f"gatt-v{config.version}-{held.id}",
        "source": f"ghost_attention_v{config.version}",
        "messages": [{**message, "loss": i == last} for i, message in enumerate(messages)],
    }


def metrics_of(
    rows: list[dict[str, Any]],
    talks: Talks,
    values: dict[str, list[str]],
    instructions: list[Instruction],
) -> dict[str, float]:
    """How many dialogues, how long they are, and what became of the others."""
    turns = [sum(m["role"] == "assistant" for m in row["messages"]) for row in rows]
    return {
        "num_demonstrations": float(len(rows)),
        "num_dropped": float(len(talks.dialogues) - len(rows)),
        "mean_turns": float(np.mean(turns)),
        "max_turns": float(max(turns)),
        "num_without_room": float(talks.num_without_room),
        "num_cut_off": float(talks.num_cut_off),
        "mean_attributes": float(np.mean([len(i.chosen) for i in instructions])),
        **{f"num_values/{name}": float(len(listed)) for name, listed in values.items()},
    }


if __name__ == "__main__":
    main(Config, run)
