"""What the Prefect page shows of a run: the table of an iteration, and how far a long stage is.

A progress artifact is made by the flow's process and updated in place by the thread that tails the
stage's progress file: ranks never speak to Prefect, and a server that is away stops nothing.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events import emit_event
from prefect.runtime import flow_run, task_run
from rich.console import Console

from data_contracts.store import Store
from flows import progress
from flows.events import GATE_FAILED, STAGE_STALLED
from flows.gates import Verdict
from flows.graph import base_nodes, version_nodes
from flows.node import version_label
from flows.progress import RateMeter, Snapshot, Terminal, duration, read_snapshot
from flows.runner import NodeResult, Walk

LOG = logging.getLogger(__name__)


def publish_board(version: int, results: list[NodeResult]) -> None:
    """The iteration's table in the Prefect UI; its key keeps the history of all runs."""
    create_table_artifact(
        key=f"rlhf-{version_label(version)}",
        description=f"Stages of {version_label(version)}",
        table=[_board_row(result) for result in results],
    )


def publish_overview(walk: Walk) -> None:
    """All stages and versions of the home as Markdown: state, time, digest, link to MLflow."""
    ledger, pages = walk.ledger, walk.tracker.pages()
    versions = ledger.versions()
    nodes = list(dict.fromkeys(n for v in versions for n in _in_order(walk, v)))
    lines = [
        f"| stage | {' | '.join(map(version_label, versions))} |",
        f"| --- |{' --- |' * len(versions)}",
        *(
            f"| {node} | {' | '.join(_cell(walk, v, node, pages) for v in versions)} |"
            for node in nodes
        ),
    ]
    create_markdown_artifact(
        key=f"rlhf-board-{_dashed(walk.recipe.product)}",
        markdown="\n".join(lines),
        description=f"Every stage of {walk.recipe.product}, version by version",
    )


def publish_gates(verdict: Verdict) -> None:
    """The verdict on an iteration's models, and an event for what notifies people of a failure."""
    label = version_label(verdict.version)
    create_table_artifact(
        key=f"rlhf-{label}-gates",
        description=f"Gates of {label}: champions are {', '.join(verdict.promoted()) or 'unmoved'}",
        table=[gate.model_dump() for gate in verdict.gates],
    )
    if failed := verdict.failed():
        emit_event(
            event=GATE_FAILED,
            resource={"prefect.resource.id": f"rlhf.iteration.{label}"},
            payload={
                "text": f"{label} did not pass: {'; '.join(map(str, failed))}",
                "gates": [gate.model_dump() for gate in failed],
            },
        )


def _in_order(walk: Walk, version: int) -> list[str]:
    order = [
        n.id.name
        for n in (version_nodes(walk.recipe, version) if version else base_nodes(walk.recipe))
    ]
    return sorted(walk.ledger.nodes(version), key=lambda n: order.index(n) if n in order else 99)


def _cell(walk: Walk, version: int, node: str, pages: Mapping[str, str]) -> str:
    key = walk.ledger.head(version, node)
    manifest = walk.store.recorded(key) if key else None
    if key is None or manifest is None:
        return ""
    digests = " ".join(f"`{ref.digest[:8]}`" for ref in manifest.outputs.values())
    took = f"done in {duration(manifest.seconds)}"
    return f"[{took}]({pages[key]}) {digests}" if key in pages else f"{took} {digests}"


def _board_row(result: NodeResult) -> dict[str, str]:
    manifest = result.manifest
    return {
        "node": result.node.id.name,
        "state": "reused" if result.reused else "made",
        "time": duration(manifest.seconds),
        "rows": ", ".join(f"{role} {n:,}" for role, n in manifest.num_rows.items()),
        "outputs": ", ".join(f"{role} {r.digest[:12]}" for role, r in manifest.outputs.items()),
        "key": manifest.key[:12],
        "finished": manifest.finished_at,
    }


def _dashed(text: str) -> str:
    """Text as Prefect's keys allow it: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


class ReportingTerminal(Terminal):
    """Shows progress on the terminal and, of a stage that takes long, on the Prefect page.

    Tells of a stage that has not moved for `stalled_minutes`.
    """

    def __init__(self, stalled_minutes: float, console: Console | None = None) -> None:
        super().__init__(console)
        self._stalled_minutes = stalled_minutes

    @contextmanager
    def watching(
        self, label: str, store: Store, key: str, on_tick: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """See Terminal."""
        artifact = _ProgressArtifact(label)
        stall = StallWatch(label, self._stalled_minutes)
        began = time.time()

        def tick() -> None:
            on_tick()
            snapshot = read_snapshot(store, key, began)
            stall.look(snapshot)
            artifact.update_sometimes(snapshot)

        with super().watching(label, store, key, on_tick=tick):
            yield
        artifact.finish()


class StallWatch:
    """Emits one event when a stage has not moved for a while; made in the thread of the task."""

    def __init__(self, label: str, minutes: float) -> None:
        self._label = label
        self._minutes = minutes
        self._related = _own_run()
        self._last: Snapshot | None = None
        self._moved_at = time.monotonic()
        self._has_told = False

    def look(self, snapshot: Snapshot | None) -> None:
        """Take the newest progress, if there is any yet."""
        if snapshot != self._last:
            self._last, self._moved_at, self._has_told = snapshot, time.monotonic(), False
        elif not self._has_told and time.monotonic() - self._moved_at >= 60 * self._minutes:
            self._has_told = True
            self._tell()

    def _tell(self) -> None:
        last = self._last
        where = f"{last.done:,} of {last.total:,} {last.unit}s" if last else "its beginning"
        emit_event(
            event=STAGE_STALLED,
            resource={"prefect.resource.id": f"rlhf.stage.{_dashed(self._label)}"},
            related=self._related,
            payload={
                "text": f"{self._label} has stood at {where} for {self._minutes:g} minutes",
                "minutes": self._minutes,
            },
        )


def _own_run() -> list[dict[str, str]]:
    """This flow run, for events that are emitted where Prefect does not know it."""
    if flow_run.id is None:
        return []
    return [
        {
            "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
            "prefect.resource.role": "flow-run",
            "prefect.resource.name": str(flow_run.name),
        }
    ]


class _ProgressArtifact:
    """One stage's progress, made with its first update; made in the thread of the task."""

    def __init__(self, label: str) -> None:
        self._label = label
        # the polling thread has no run context of Prefect's
        self._flow_run = flow_run.id
        self._task_run = task_run.id
        self._meter = RateMeter()
        self._began = time.time()
        self._said_at = time.monotonic()
        self._artifact: UUID | None = None
        self._is_broken = False

    def update_sometimes(self, snapshot: Snapshot | None) -> None:
        """Show the newest progress, at most every PAGE_SECONDS."""
        if snapshot is None:
            return
        self._meter.add(snapshot)
        if time.monotonic() - self._said_at >= progress.PAGE_SECONDS:
            self._said_at = time.monotonic()
            self._show(snapshot.percentage, self._text(snapshot))

    def finish(self) -> None:
        """A stage that has come to its end stands at 100 %."""
        if self._artifact is not None:
            self._show(100.0, f"{self._label}: done in {duration(time.time() - self._began)}")

    def _text(self, snapshot: Snapshot) -> str:
        parts = [f"{snapshot.done:,}/{snapshot.total:,} {snapshot.unit}s"]
        parts.append(f"{self._meter.rate:,.1f} {snapshot.unit}s/s")
        parts += [
            f"{name} {value:,.4g}"
            for name, value in snapshot.extra.items()
            if isinstance(value, int | float)
        ]
        if (left := self._meter.eta_seconds) is not None:
            parts.append(f"{duration(left)} left")
        return f"{self._label}: {', '.join(parts)}"

    def _show(self, percentage: float, text: str) -> None:
        if self._is_broken or self._flow_run is None:
            return
        try:
            with get_client(sync_client=True) as client:
                if self._artifact is None:
                    made = ArtifactCreate(
                        type="progress",
                        key=f"rlhf-{_dashed(self._label)}",
                        description=text,
                        data=percentage,
                        flow_run_id=UUID(str(self._flow_run)),
                        task_run_id=UUID(str(self._task_run)) if self._task_run else None,
                    )
                    self._artifact = client.create_artifact(made).id
                else:
                    update = ArtifactUpdate(data=percentage, description=text)
                    client.update_artifact(self._artifact, update)
        except Exception as error:  # the page only looks on: whatever it raises, the stage goes on
            self._is_broken = True
            LOG.warning("No more progress of %s on the Prefect page: %s", self._label, error)
