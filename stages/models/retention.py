"""How long an instruction of the first turn is kept, by turn (Table 30)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from data_contracts.base import Contract
from stages.models.comparison import rate_row
from stages.models.dialogues import Dialogue, joined_dialogues
from stages.models.instructions import Attribute, Instruction, combine

RETENTION = "retention"


class RetentionSettings(Contract):
    """The dialogues in which an instruction should last."""

    num_dialogues: int = Field(default=100, gt=0)
    num_turns: int = Field(default=6, ge=1)
    attributes: tuple[Attribute, ...] = Field(min_length=1)

    @field_validator("attributes")
    @classmethod
    def _have_values(cls, value: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
        for attribute in value:
            if not attribute.values:
                raise ValueError(f"attribute {attribute.name}: give the values that are checked")
        return value


def instructed_dialogues(
    prompts: Sequence[dict[str, Any]], settings: RetentionSettings, seed: int
) -> list[tuple[Dialogue, Instruction]]:
    """Dialogues of single questions, all of one length, each under an instruction of its own."""
    rng = np.random.default_rng(seed)
    values = {attribute.name: attribute.values for attribute in settings.attributes}
    single = [row for row in prompts if len(row["messages"]) == 1]
    dialogues = joined_dialogues(single, [settings.num_turns] * settings.num_dialogues)
    instructions = [combine(settings.attributes, values, rng) for _ in dialogues]
    return [
        (Dialogue(d.id, d.questions, instruction=i.full), i)
        for d, i in zip(dialogues, instructions, strict=True)
    ]


def retention_rates(
    version: str,
    held: Sequence[Dialogue],
    instructions: Sequence[Instruction],
    keeps: Callable[[Mapping[str, str], str], bool],
) -> list[dict[str, Any]]:
    """Rows of the rates table, one for each turn: the share of answers that keep the instruction.

    A dialogue that ended early counts up to the turn that it reached.
    """
    rows = []
    for turn in range(max((len(d.answers) for d in held), default=0)):
        verdicts = [
            keeps(instruction.chosen, dialogue.answers[turn])
            for dialogue, instruction in zip(held, instructions, strict=True)
            if turn < len(dialogue.answers)
        ]
        rows.append(rate_row(RETENTION, version, f"turn {turn + 1}", verdicts))
    return rows
