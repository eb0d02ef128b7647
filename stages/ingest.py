"""Bring users' files into the tables that every later stage reads (§2.1, §3.1, §3.2.1).

    rlhf stage ingest --recipe demo
    python -m stages.ingest --config ingest.json --home RLHF_HOME

All five tables are written, empty ones too. A prompt is on one side of the split in all of them:
demonstrations of held-out prompts are left out, preferences and prompts carry their split.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from data_contracts.base import Contract, StageConfig
from data_contracts.parquet import write_table
from data_contracts.ratings import Domain, Split
from data_contracts.splits import normalised, opening, split_of
from data_contracts.tables import CONTRACTS, TableContract
from stages.importers.reading import EmptyTextError, Record
from stages.importers.rows import Demonstration, Document, Message, Preference, Prompt
from stages.importers.source import Role, Source, rows_of
from stages.runtime.stage import StageOutput, WorkDir, main

VERSION = "1"

CONTRACT_OF: dict[Role, TableContract] = {
    "preferences": CONTRACTS["preferences"],
    "open_preferences": CONTRACTS["preferences"],
    "demonstrations": CONTRACTS["demonstrations"],
    "prompts": CONTRACTS["prompts"],
    "documents": CONTRACTS["documents"],
}
"""Of each output, in the order of writing: prompts after the tables that add to them, documents
last, since they take longest and a malformed file should come to light early."""

ROWS_PER_BATCH = 1_000
UNKNOWN_ANNOTATOR = "unknown"


class IngestSettings(Contract):
    """The files, and how prompts are held out."""

    sources: tuple[Source, ...] = Field(min_length=1)
    test_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of prompts on which models are compared; nothing trains on them."""
    validation_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of prompts for early stopping of PPO; preferences on them are test rows."""
    prompts_from: tuple[str, ...] = ()
    """Names of preference and demonstration sources whose prompts become prompts rows too."""
    near_duplicate_threshold: float | None = Field(default=None, gt=0, le=1)
    """Leave out documents this similar to an earlier one (Jaccard index of five-word shingles,
    estimated by MinHash); None leaves out exact copies only."""

    @model_validator(mode="after")
    def _sources_fit(self) -> "IngestSettings":
        by_name = {source.name: source for source in self.sources}
        if len(by_name) < len(self.sources):
            raise ValueError("two sources have the same name: give every source its own")
        for name in self.prompts_from:
            source = by_name.get(name)
            if source is None or source.role in ("documents", "prompts"):
                raise ValueError(
                    f"prompts_from names {name}, which is no source of demonstrations or "
                    "preferences"
                )
            if source.role == "demonstrations" and source.domain is None:
                raise ValueError(f"source {name}: prompts_from needs its domain")
        if self.test_fraction + self.validation_fraction > 1:
            raise ValueError("test_fraction and validation_fraction sum to more than 1")
        return self


class Config(StageConfig, IngestSettings):
    """Settings; the files' digests stand in them."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """Read every source once and write the five tables."""
    folders: dict[Role, Path] = {role: work.output(role) for role in CONTRACT_OF}
    counts = _write_tables(config, work, folders) if work.rank.is_main else {}
    artifacts = {str(r): (folders[r], contract.kind) for r, contract in CONTRACT_OF.items()}
    return StageOutput(artifacts, counts)


def _write_tables(config: Config, work: WorkDir, folders: dict[Role, Path]) -> dict[str, float]:
    for source in config.sources:
        source.checked_path()
    ingestion = Ingestion(config)
    for done, (role, contract) in enumerate(CONTRACT_OF.items()):
        work.progress(done, len(CONTRACT_OF), "table")
        batches = _batches(ingestion.rows(role), contract.schema)
        write_table(folders[role] / f"{role}.parquet", batches, contract)
    work.progress(len(CONTRACT_OF), len(CONTRACT_OF), "table")
    return {name: float(count) for name, count in sorted(ingestion.tally.items())}


class Ingestion:
    """One pass over the sources, and what rows of different tables must know of each other."""

    def __init__(self, config: IngestSettings) -> None:
        self._config = config
        self.tally: Counter[str] = Counter()
        """kept/<table>/<source>, split/<table>/<split>, dropped/<table>/<source>/<reason>."""
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        self._given_prompts = [
            (source, record, row)
            for source, record, row in self._read("prompts")
            if isinstance(row, Prompt)
        ]
        self._given_splits = self._splits_given_by_rows()
        self._other_prompts: list[tuple[Source, dict[str, Any]]] = []

    def rows(self, role: Role) -> Iterator[dict[str, Any]]:
        """The rows of one output table, each once, in the order of the sources."""
        make = {
            "preferences": lambda: self._preferences("preferences"),
            "open_preferences": lambda: self._preferences("open_preferences"),
            "demonstrations": self._demonstrations,
            "prompts": self._prompts,
            "documents": self._documents,
        }[role]
        row_id = CONTRACT_OF[role].row_id
        for source, row in make():
            if row[row_id] in self._seen[role]:
                self.tally[f"dropped/{role}/{source.name}/duplicate"] += 1
                continue
            self._seen[role].add(row[row_id])
            self.tally[f"kept/{role}/{source.name}"] += 1
            if "split" in row:
                self.tally[f"split/{role}/{row['split']}"] += 1
            yield row

    def _prompts(self) -> Iterator[tuple[Source, dict[str, Any]]]:
        for source, record, row in self._given_prompts:
            domain = _domain(source, record, row.domain)
            category = row.category or source.category
            yield source, self._prompt_row(source, row.messages, domain, category)
        yield from self._other_prompts

    def _preferences(self, role: Role) -> Iterator[tuple[Source, dict[str, Any]]]:
        for source, record, row in self._read(role):
            assert isinstance(row, Preference)
            domain = _domain(source, record, row.domain)
            category = row.category or source.category
            prompt = self._prompt_row(source, row.messages, domain, category)
            if source.name in self._config.prompts_from:
                self._other_prompts.append((source, prompt))
            yield source, _preference_row(source, row, prompt)

    def _demonstrations(self) -> Iterator[tuple[Source, dict[str, Any]]]:
        for source, _, row in self._read("demonstrations"):
            assert isinstance(row, Demonstration)
            prompt = row.messages[:-1]
            if source.name in self._config.prompts_from:
                assert source.domain is not None
                asked = self._prompt_row(source, prompt, source.domain, source.category)
                self._other_prompts.append((source, asked))
            if self._split(prompt) != Split.train:
                self.tally[f"dropped/demonstrations/{source.name}/held_out_prompt"] += 1
                continue
            messages = [
                {**message, "loss": learned}
                for message, learned in zip(row.messages, row.learned, strict=True)
            ]
            yield (
                source,
                {
                    "demonstration_id": content_id(messages),
                    "source": source.name,
                    "messages": messages,
                },
            )

    def _documents(self) -> Iterator[tuple[Source, dict[str, Any]]]:
        # Here and not above: its library is slow to import, and every `rlhf` command would wait.
        from stages.text.near_duplicates import NearDuplicates

        threshold = self._config.near_duplicate_threshold
        near_duplicates = None if threshold is None else NearDuplicates(threshold)
        for source, record, row in self._read("documents"):
            assert isinstance(row, Document)
            if near_duplicates is not None and near_duplicates.repeats(row.text):
                self.tally[f"dropped/documents/{source.name}/near_duplicate"] += 1
                continue
            name = _source_name(source, record)
            yield (
                source,
                {"document_id": content_id(row.text), "source": name, "text": row.text},
            )

    def _prompt_row(
        self, source: Source, messages: list[Message], domain: Domain, category: str | None
    ) -> dict[str, Any]:
        return {
            "prompt_id": content_id(domain, messages),
            "domain": domain,
            "source": source.name,
            "split": self._split(messages),
            "category": category,
            "messages": messages,
        }

    def _read(self, role: Role) -> Iterator[tuple[Source, Record, Any]]:
        for source in self._config.sources:
            if source.role == role:
                for record, row in rows_of(source, self.tally):
                    yield source, record, row

    def _split(self, messages: list[Message]) -> Split:
        question = opening(messages)
        given = self._given_splits.get(normalised(question)) if self._given_splits else None
        return given or split_of(
            question, self._config.test_fraction, self._config.validation_fraction
        )

    def _splits_given_by_rows(self) -> dict[str, Split]:
        """Sides that prompt rows name themselves; they hold in every table."""
        given: dict[str, Split] = {}
        for _, record, row in self._given_prompts:
            if row.split is not None:
                key = normalised(opening(row.messages))
                if given.setdefault(key, Split(row.split)) != row.split:
                    problem = "puts a prompt on another side than an earlier row"
                    raise record.error("split", problem, "Give both rows the same split")
        return given


def content_id(*parts: Any) -> str:
    """128 bits of the sha256 of a row's content, in hex: the same in every run."""
    content = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _preference_row(source: Source, row: Preference, prompt: dict[str, Any]) -> dict[str, Any]:
    annotator = row.annotator or UNKNOWN_ANNOTATOR
    return {
        **prompt,
        "preference_id": content_id(
            prompt["prompt_id"], row.chosen, row.rejected, annotator, row.rating, row.safety_label
        ),
        "batch": 0,
        # Nothing may train on a validation prompt, and pairs have no third side.
        "split": Split.train if prompt["split"] == Split.train else Split.test,
        "annotator": annotator,
        "chosen": row.chosen,
        "rejected": row.rejected,
        "rating": row.rating,
        "safety_label": row.safety_label,
    }


def _source_name(source: Source, record: Record) -> str:
    """What a row of documents says of its source, or the file's name where it says nothing."""
    if source.source_field is None:
        return source.name
    try:
        return record.text(source.source_field)
    except EmptyTextError:
        return source.name


def _domain(source: Source, record: Record, given: str | None) -> Domain:
    if given is not None:
        return Domain(given)
    if source.domain is None:
        remedy = f"Add it to the row, or set domain on source {source.name}"
        raise record.error("domain", "is missing", remedy)
    return source.domain


def _batches(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(rows, ROWS_PER_BATCH)):
        yield pa.RecordBatch.from_pylist(chunk, schema=schema)


if __name__ == "__main__":
    main(Config, run)
