"""Progress of the running stage on the terminal: a bar with rate and ETA, or plain milestones.

A stage says how far it is in `attempt/progress.json`, whether it runs in this process or under a
launcher; a thread reads that file. Nothing here is ever needed for a result.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_contracts.store import Store
from stages.runtime.workdir import PROGRESS_FILE

POLL_SECONDS = 0.5
MILESTONE_SECONDS = 15.0
"""Least pause between two lines about one stage where the output is not a terminal."""
PAGE_SECONDS = 15.0
"""Least pause between two updates on the Prefect page, and the age at which a stage comes on it:
most stages of a small run are over before."""
_FULL = 100.0


@dataclass(frozen=True)
class Snapshot:
    """What progress.json said last."""

    done: float
    total: float
    unit: str
    at: float
    """Unix time in seconds."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def percentage(self) -> float:
        """0 to 100."""
        return _FULL * self.done / self.total if self.total else 0.0


def read_snapshot(store: Store, key: str, since: float) -> Snapshot | None:
    """Progress of the newest attempt at a key, if written after `since` (Unix seconds)."""
    for attempt in store.attempts(key)[-1:]:
        try:
            content = json.loads((attempt / PROGRESS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if content["time"] < since:
            return None
        extra = {k: v for k, v in content.items() if k not in ("done", "total", "unit", "time")}
        return Snapshot(content["done"], content["total"], content["unit"], content["time"], extra)
    return None


class RateMeter:
    """Units per second over the snapshots since the unit last changed."""

    def __init__(self) -> None:
        self._first: Snapshot | None = None
        self._last: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Take a new snapshot in; another unit or a step back starts a new measurement."""
        last = self._last
        if last is None or snapshot.unit != last.unit or snapshot.done < last.done:
            self._first = snapshot
        self._last = snapshot

    @property
    def rate(self) -> float:
        """Units per second; 0 until two snapshots differ."""
        if self._first is None or self._last is None or self._last.at <= self._first.at:
            return 0.0
        return (self._last.done - self._first.done) / (self._last.at - self._first.at)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at this rate, None while it is unknown."""
        if self._last is None or self.rate <= 0:
            return None
        return max(self._last.total - self._last.done, 0) / self.rate


class Terminal:
    """Says on standard error what is running: one bar at a time, one line for each node done."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def line(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def watching(
        self, label: str, store: Store, key: str, on_tick: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Show the progress of a key while the block runs; `on_tick` is called at every poll."""
        view = _Bar(self.console, label) if self.console.is_terminal else _Lines(self, label)
        started, stop = time.time(), threading.Event()

        def poll() -> None:
            while not stop.wait(POLL_SECONDS):
                snapshot = read_snapshot(store, key, started)
                if snapshot:
                    view.show(snapshot)
                on_tick()

        thread = threading.Thread(target=poll, name=f"progress {label}", daemon=True)
        with view:
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()


class _Bar:
    def __init__(self, console: Console, label: str) -> None:
        self._meter = RateMeter()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._label = label
        self._task: TaskID = self._progress.add_task(label, total=None, rate="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, snapshot: Snapshot) -> None:
        self._meter.add(snapshot)
        self._progress.update(
            self._task,
            completed=snapshot.done,
            total=snapshot.total,
            description=f"{self._label} ({snapshot.unit}s)",
            rate=f"{self._meter.rate:,.1f}/s{_loss(snapshot)}",
        )


class _Lines:
    def __init__(self, terminal: Terminal, label: str) -> None:
        self._terminal = terminal
        self._label = label
        self._meter = RateMeter()
        self._said_at = time.monotonic()

    def __enter__(self) -> None:
        self._terminal.line(f"  {self._label}: running")

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, snapshot: Snapshot) -> None:
        self._meter.add(snapshot)
        if time.monotonic() - self._said_at < MILESTONE_SECONDS:
            return
        self._said_at = time.monotonic()
        eta = self._meter.eta_seconds
        left = f", {duration(eta)} left" if eta is not None else ""
        self._terminal.line(
            f"  {self._label}: {snapshot.done:,}/{snapshot.total:,} {snapshot.unit}s "
            f"({snapshot.percentage:.0f} %), {self._meter.rate:,.1f}/s{_loss(snapshot)}{left}"
        )


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _loss(snapshot: Snapshot) -> str:
    loss = snapshot.extra.get("loss")
    return f", loss {loss:.3f}" if isinstance(loss, float) else ""
