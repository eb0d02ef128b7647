"""`rlhf status --watch`: the board of a home, stage by version, while something works in it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.live import Live
from rich.table import Table

from data_contracts.ledger import Ledger
from data_contracts.store import Manifest, Store
from flows.node import version_label
from flows.planner import Step, plan
from flows.progress import RateMeter, Snapshot, duration, read_snapshot
from flows.recipe import Recipe

REFRESH_SECONDS = 2.0
_SILENT_SECONDS = 60.0
"""After which a stage that says nothing is not taken for one at work."""


@dataclass(frozen=True)
class Cell:
    """One stage of one version."""

    version: int
    node: str
    state: str
    """done, running or to do."""
    detail: str


class Board:
    """The cells of a recipe's board, and the rate of what is running."""

    def __init__(self, recipe: Recipe, store: Store, ledger: Ledger) -> None:
        self._recipe = recipe
        self._store = store
        self._ledger = ledger
        self._meters: dict[str, RateMeter] = {}

    def cells(self, now: float) -> Iterator[Cell]:
        """Every node in the order in which they run; `now` is Unix time in seconds."""
        for step in plan(self._recipe, self._store, self._ledger):
            node = step.node.id
            yield Cell(node.version, node.name, *self._state(step, now))

    def table(self, now: float) -> Table:
        """A row for each stage, a column for each version."""
        cells = {(cell.node, cell.version): cell for cell in self.cells(now)}
        versions = sorted({version for _, version in cells})
        table = Table(title=f"Home {self._store.home}")
        table.add_column("stage", no_wrap=True)
        for version in versions:
            table.add_column(version_label(version))
        for node in dict.fromkeys(node for node, _ in cells):
            row = [cells.get((node, version)) for version in versions]
            table.add_row(node, *(f"{c.state} {c.detail}".strip() if c else "" for c in row))
        return table

    def _state(self, step: Step, now: float) -> tuple[str, str]:
        snapshot = read_snapshot(self._store, step.key, now - _SILENT_SECONDS) if step.key else None
        if step.key and snapshot and _is_newer(snapshot, step.manifest):
            return "running", self._progress(step.key, snapshot)
        if step.manifest is not None:
            digests = " ".join(ref.digest[:8] for ref in step.manifest.outputs.values())
            return "done", f"{duration(step.manifest.seconds)}  {digests}"
        return "to do", "" if step.reason == "never run" else step.reason

    def _progress(self, key: str, snapshot: Snapshot) -> str:
        meter = self._meters.setdefault(key, RateMeter())
        meter.add(snapshot)
        left = meter.eta_seconds
        rest = f", {duration(left)} left" if left is not None else ""
        return f"{snapshot.percentage:.0f} % of {snapshot.total:,} {snapshot.unit}s{rest}"


def watch(board: Board, console: Console) -> None:
    """Show the board, again and again, until Ctrl-C."""
    with Live(board.table(time.time()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_SECONDS)
            live.update(board.table(time.time()), refresh=True)


def _is_newer(snapshot: Snapshot, manifest: Manifest | None) -> bool:
    """Whether progress is not that of the run whose result is there."""
    if manifest is None:
        return True
    return snapshot.at > datetime.fromisoformat(manifest.finished_at).timestamp() + 1.0
