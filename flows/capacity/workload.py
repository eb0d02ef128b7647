"""What a recipe does not say of its data, and is assumed: how many rows, and how long."""

from collections.abc import Sequence

from pydantic import Field, ValidationError

from data_contracts.base import Contract
from data_contracts.errors import UserError
from flows.recipe import merged, parse_setting


class Workload(Contract):
    """Data of one run; by default the paper's counts, and the mean lengths of its Table 6."""

    num_demonstrations: int = Field(default=27_540, gt=0)
    """Of supervised fine-tuning (§3.1)."""
    num_comparisons: int = Field(default=1_500_000, gt=0)
    """Each reward model's training pairs: about half of the paper's 2.9 million."""
    prompt_tokens: int = Field(default=379, gt=0)
    """Mean prompt, the earlier turns of its dialogue included."""
    response_tokens: int = Field(default=217, gt=0)
    """Mean response; a prompt and a response are 596 tokens."""
    longest_prompt_tokens: int = Field(default=1024, gt=0)
    """The longest prompt that is sampled from: memory is planned for it."""
    decode_bandwidth: float = Field(default=0.5, gt=0, le=1)
    """Share of the card's memory bandwidth at which tokens are written one after the other."""

    @property
    def document_tokens(self) -> int:
        """A mean prompt and response."""
        return self.prompt_tokens + self.response_tokens


def workload(assumptions: Sequence[str]) -> Workload:
    """The defaults with `key=value` changes. Raises UserError for an unknown key or a bad value."""
    values: dict[str, object] = {}
    for assumption in assumptions:
        values = merged(values, parse_setting(assumption))
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise UserError(
            f"--assume {', '.join(assumptions)}: {problems}",
            f"Known are {', '.join(Workload.model_fields)}",
        ) from None
