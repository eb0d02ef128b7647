"""How many rows a second does a table's contract check, against one pydantic model a row?

    python -m benchmarks.validation

One lap reads a Parquet file of preferences and checks every rule of its contract, as every stage
does with every input.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, StringConstraints, TypeAdapter, model_validator

from benchmarks.benchmark import Benchmark, main
from benchmarks.sides import Side
from benchmarks.turns import Turns
from data_contracts.parquet import read_table, write_table
from data_contracts.ratings import Domain, Rating, SafetyLabel
from data_contracts.tables import PREFERENCES


@dataclass(frozen=True)
class Size:
    """Rows of the file."""

    num_rows: int = 100_000


def rows(size: Size) -> list[dict[str, Any]]:
    """Preferences with a few words of text each."""
    ratings, labels, domains = list(Rating), list(SafetyLabel), list(Domain)
    return [
        {
            "preference_id": f"p{i}",
            "prompt_id": f"q{i}",
            "domain": domains[i % 2].value,
            "source": "own",
            "batch": i % 7,
            "split": "test" if i % 20 == 0 else "train",
            "annotator": f"a{i % 40}",
            "category": None,
            "messages": [
                {"role": "user", "content": f"Name river number {i} and say where it ends."},
                {"role": "assistant", "content": "Which continent do you mean?"},
                {"role": "user", "content": "Any."},
            ],
            "chosen": f"The Loire, which ends in the Atlantic near Saint-Nazaire ({i}).",
            "rejected": "A river.",
            "rating": ratings[i % len(ratings)].value,
            "safety_label": labels[i % len(labels)].value,
        }
        for i in range(size.num_rows)
    ]


def _laps(turns: Turns, size: Size, read: Callable[[Path], int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preferences.parquet"
        write_table(path, rows(size), PREFERENCES)
        turns.start()
        for _ in range(turns.num_laps):
            turns.lap(read(path))


def ours(turns: Turns, size: Size) -> None:
    """Arrow schema and vectorised checks."""
    _laps(turns, size, lambda path: read_table(path, PREFERENCES).num_rows)


Text = Annotated[str, StringConstraints(pattern=r"\S")]


class Message(BaseModel):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str


class Preference(BaseModel):
    """The contract's rules, row by row."""

    preference_id: Text
    prompt_id: Text
    domain: Domain
    source: str
    batch: int
    split: Literal["train", "test"]
    annotator: str
    category: str | None
    messages: list[Message]
    chosen: Text
    rejected: Text
    rating: Rating | None
    safety_label: SafetyLabel | None

    @model_validator(mode="after")
    def _check(self) -> "Preference":
        roles = [message.role for message in self.messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if turns != (["user", "assistant"] * len(turns))[: len(turns)] or turns[-1:] != ["user"]:
            raise ValueError("roles do not alternate up to the user")
        if not all(message.content.strip() for message in self.messages):
            raise ValueError("an empty message")
        if self.chosen == self.rejected:
            raise ValueError("both responses are the same")
        return self


def pydantic_rows(turns: Turns, size: Size) -> None:
    """The same rules in pydantic; repeated ids are looked for as well."""
    adapter = TypeAdapter(list[Preference])

    def read(path: Path) -> int:
        table = adapter.validate_python(pq.read_table(path).to_pylist())
        if len({row.preference_id for row in table}) < len(table):
            raise ValueError("repeated ids")
        return len(table)

    _laps(turns, size, read)


BENCHMARK = Benchmark(
    name="validation",
    question=__doc__.splitlines()[0],
    unit="rows/s",
    size=Size(),
    sides=(
        Side("ours", ours, "data_contracts.parquet.read_table"),
        Side("pydantic", pydantic_rows, "a model for each row, the same rules", target=4.0),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
