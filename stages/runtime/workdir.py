"""What a stage's body may touch: verified inputs, folders for outputs, metrics and progress."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.parquet import read_table
from data_contracts.store import Store
from data_contracts.tables import CONTRACTS
from stages.runtime import stopping
from stages.runtime.distributed import Rank

METRICS_FILE = "metrics.jsonl"
PROGRESS_FILE = "progress.json"
SAMPLES_FOLDER = "samples"
_PROGRESS_SECONDS = 0.2
"""Pause between two writes of the progress file: nobody reads it faster."""


class WorkDir:
    """The folder of one attempt, as its ranks see it."""

    attempt: Path
    """work/<key>/attempt-N: config, log, metrics and progress stay here, whatever happens."""
    checkpoints: Path
    """Shared by all attempts at the same key, emptied once one of them succeeds."""
    rank: Rank
    store: Store

    def __init__(self, attempt: Path, rank: Rank, store: Store) -> None:
        self.attempt = attempt
        self.checkpoints = attempt.parent / "checkpoints"
        self.rank = rank
        self.store = store
        self._progress_at = 0.0

    def input(self, ref: ArtifactRef) -> Path:
        """Local folder with an input's files, their digests checked. Any rank may call."""
        return self.store.local(ref)

    def table(self, ref: ArtifactRef, name: str) -> pa.Table:
        """An input's rows, checked against the contract `name`. Any rank may call.

        Raises UserError when the artifact holds another kind of rows.
        """
        contract = CONTRACTS[name]
        if ref.kind.split("/")[0] != name:
            raise UserError(
                f"Expected {contract.kind} as input and got {ref.kind}",
                "Point the config at the artifact of the stage that writes it",
            )
        return read_table(self.input(ref), contract)

    def output(self, role: str) -> Path:
        """The folder to write an output into, the same on every rank; fresh in every attempt."""
        folder = self.attempt / "outputs" / role
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def track(self, step: int, metrics: dict[str, float]) -> None:
        """Append metrics to metrics.jsonl with the time in seconds; rank 0's are written."""
        if not self.rank.is_main:
            return
        line = json.dumps({"step": step, "time": time.time(), **metrics})
        # One write of a whole line: a reader never sees half of one that is followed by another.
        with (self.attempt / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def show(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Keep a table of samples for people to read, one a step; rank 0's is written."""
        if not self.rank.is_main:
            return
        folder = self.attempt / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        unfinished = folder / ".unfinished"
        unfinished.write_text(json.dumps(rows), encoding="utf-8")
        os.replace(unfinished, folder / f"{step:08d}.json")

    def progress(self, done: int, total: int, unit: str, **extra: Any) -> None:
        """Say how far the stage is: progress.json is replaced at most five times a second.

        Raises Stopped on rank 0 when the stage is asked to stop where it has no checkpoint to write
        (an open Checkpointer does that); a launcher then ends the other ranks.
        """
        now = time.monotonic()
        if not self.rank.is_main or (done < total and now - self._progress_at < _PROGRESS_SECONDS):
            return
        self._progress_at = now
        content = {"done": done, "total": total, "unit": unit, "time": time.time(), **extra}
        temporary = self.attempt / f".{PROGRESS_FILE}.tmp"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.attempt / PROGRESS_FILE)
        folder = self.attempt.parent
        if stopping.is_asked(folder) and not stopping.can_stop(folder):
            raise stopping.stopped(f"at {unit} {done:,} of {total:,}")


def read_metrics(store: Store, key: str) -> list[dict[str, Any]]:
    """All metrics tracked for a stage key in order, over its attempts.

    An attempt that resumed at step k takes the place of what earlier ones wrote from k on.
    """
    rows: list[dict[str, Any]] = []
    for attempt in store.attempts(key):
        spool = attempt / METRICS_FILE
        lines = spool.read_text(encoding="utf-8").split("\n") if spool.exists() else []
        newer = [json.loads(line) for line in lines[:-1]]  # what has no newline is being written
        if newer:
            first = min(row["step"] for row in newer)
            rows = [row for row in rows if row["step"] < first] + newer
    return rows


def read_samples(store: Store, key: str) -> dict[str, list[dict[str, Any]]]:
    """All tables of samples shown for a stage key by step, as eight digits.

    A step that a resumed run made again gave the same table; the newest attempt's is taken.
    """
    files = {
        path.stem: path
        for attempt in store.attempts(key)
        for path in sorted((attempt / SAMPLES_FOLDER).glob("*.json"))
        if not path.name.startswith(".")
    }
    return {step: json.loads(path.read_text(encoding="utf-8")) for step, path in files.items()}
