"""One source of the configuration: a file, its format, and what its rows become."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from data_contracts.errors import UserError
from data_contracts.ratings import Domain
from stages.importers import instructions, preferences
from stages.importers.reading import EmptyTextError, Record, read_documents, read_records
from stages.importers.rows import Dropped, Row
from stages.importers.user_file import UserFile

Role = Literal["documents", "demonstrations", "prompts", "preferences", "open_preferences"]
Format = Literal[
    "text", "jsonl_text", "alpaca", "qa", "chat", "prompts", "hh", "alpaca_eval", "pairs"
]

IMPORTERS: dict[Format, Callable[[Record], Row | Dropped]] = {
    "text": instructions.text,
    "jsonl_text": instructions.text,
    "alpaca": instructions.alpaca,
    "qa": instructions.qa,
    "chat": instructions.chat,
    "prompts": instructions.prompts,
    "hh": preferences.hh,
    "alpaca_eval": preferences.alpaca_eval,
    "pairs": preferences.pairs,
}
_PAIRS: tuple[Format, ...] = ("hh", "alpaca_eval", "pairs")
FORMATS_OF: dict[Role, tuple[Format, ...]] = {
    "documents": ("text", "jsonl_text"),
    "demonstrations": ("alpaca", "qa", "chat"),
    "prompts": ("prompts",),
    "preferences": _PAIRS,
    "open_preferences": _PAIRS,
}
_FORMATS_WITHOUT_DOMAIN = ("hh", "alpaca_eval")


class Source(UserFile):
    """A user's file; plain or gzipped, JSON lines or a JSON array, whatever its name ends in."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Stands in the `source` column of every row."""
    role: Role
    """The table that its rows go to."""
    format: Format
    domain: Domain | None = None
    """Of its prompts and preferences, where rows do not say (formats prompts and pairs may)."""
    category: str | None = None
    """Of its prompts and preferences, where rows do not say."""
    max_rows: int | None = Field(default=None, gt=0)
    """Take only the first rows of the file, rows that are dropped not counted."""
    skip_empty: bool = False
    """Leave out, and count, rows whose text is empty; without it they are errors."""
    split_at_blank_lines: bool = False
    """Format text: a document ends at a blank line; otherwise the file is one document."""
    source_field: str | None = None
    """Format jsonl_text: the field that names a row's source in place of `name`."""

    @model_validator(mode="after")
    def _settings_fit(self) -> "Source":
        if self.format not in FORMATS_OF[self.role]:
            known = ", ".join(FORMATS_OF[self.role])
            raise ValueError(f"source {self.name}: {self.role} come in the formats {known}")
        if self.domain is None and self.format in _FORMATS_WITHOUT_DOMAIN:
            raise ValueError(
                f"source {self.name}: set domain to helpfulness or safety, the rows of format "
                f"{self.format} do not say it"
            )
        if self.split_at_blank_lines and self.format != "text":
            raise ValueError(f"source {self.name}: split_at_blank_lines is for format text")
        if self.source_field and self.format != "jsonl_text":
            raise ValueError(f"source {self.name}: source_field is for format jsonl_text")
        return self


def rows_of(source: Source, tally: Counter[str]) -> Iterator[tuple[Record, Row]]:
    """The rows of a source with where they stand; what is dropped goes to `tally`.

    Raises UserError for anything malformed, and for a file of which no row is left.
    """
    importer = IMPORTERS[source.format]
    num_read = num_rows = 0
    for record in _records_of(source):
        num_read += 1
        try:
            row = importer(record)
        except EmptyTextError:
            if not source.skip_empty:
                raise
            row = Dropped("empty")
        if isinstance(row, Dropped):
            tally[f"dropped/{source.role}/{source.name}/{row.reason}"] += 1
            continue
        num_rows += 1
        yield record, row
        if num_rows == source.max_rows:
            return
    if num_read == 0:
        raise UserError(f"{source.path} holds no rows", "Leave the source out, or fill the file")
    if num_rows == 0:
        start = f"dropped/{source.role}/{source.name}/"
        reasons = {k.removeprefix(start): n for k, n in tally.items() if k.startswith(start)}
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        raise UserError(
            f"Not one of the {num_read} rows of {source.path} can be used: {counts}",
            f"Look at a row: is it of format {source.format}? Or leave the source out",
        )


def _records_of(source: Source) -> Iterator[Record]:
    if source.format == "text":
        return read_documents(source.path, source.split_at_blank_lines)
    return read_records(source.path)
