"""What must hold after every row: no process, slot or metric too many or too few, a clean home."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from drill.house import House

from data_contracts.store import Manifest
from flows.fsck import inspect
from stages.runtime.workdir import read_metrics

_SETTLE_SECONDS = 120.0
"""For programs that are started again and leases that run out."""
_MEASURED = ("time", "throughput/", "energy/")
"""Metrics that no two attempts at a stage have in common."""
_MOST_DIFFERENCE = 1e-3
"""Between values of a step that was made again on as many ranks."""


class Checks:
    """The checks of one house; what MLflow has of a finished stage is read once."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._looked_at: set[tuple[str, str]] = set()

    def problems(self) -> list[str]:
        """What is wrong now that a row is over; servers may need a moment to settle."""
        return [*self.settled(), *self._metrics(), *self._fsck()]

    def settled(self) -> list[str]:
        """Wait for processes and places to be as they were; what still is not, in the end."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while problems := [*self._processes(), *self._places()]:
            if time.monotonic() > deadline:
                return problems
            time.sleep(0.5)
        return []

    def _processes(self) -> list[str]:
        now, wanted = self._house.programs(), self._house.standing
        orphans = [f"orphan: {command[-120:]}" for command in (now - wanted).elements()]
        return orphans + [f"gone: {command[-120:]}" for command in (wanted - now).elements()]

    def _places(self) -> list[str]:
        prefect = self._house.prefect
        runs = [f"still at work: {run}" for run in prefect.at_work()]
        return runs + [f"leaked slots: {name} {n:g}" for name, n in prefect.slots().items()]

    def _metrics(self) -> list[str]:
        """Every row that a finished stage has spooled is in MLflow, once."""
        house = self._house
        store, ledger = house.store, house.ledger
        heads = {ledger.head(v, n) for v in ledger.versions() for n in ledger.nodes(v)}
        runs = house.mlflow.runs("drill")
        names = Counter(run["tags"].get("rlhf.stage_key") for run in runs)
        problems = [
            f"{n} MLflow runs of stage {key[:12]}" for key, n in names.items() if key and n > 1
        ]
        by_key = {run["tags"].get("rlhf.stage_key"): run for run in runs}
        for key in heads:
            manifest = store.recorded(key) if key else None
            if manifest is None or (manifest.key, manifest.finished_at) in self._looked_at:
                continue
            found = self._of_stage(manifest, by_key.get(key))
            problems += found
            if not found:
                self._looked_at.add((manifest.key, manifest.finished_at))
        return problems

    def _of_stage(self, manifest: Manifest, run: Mapping[str, Any] | None) -> list[str]:
        name = f"{manifest.stage} {manifest.key[:12]}"
        if run is None:
            return [f"{name} is not in MLflow"]
        if run["status"] != "FINISHED":
            return [f"{name} is {run['status']} in MLflow"]
        spooled: dict[str, list[tuple[int, float]]] = {}
        for row in read_metrics(self._house.store, manifest.key):
            for metric, value in row.items():
                if metric not in ("step", "time") and math.isfinite(value):
                    spooled.setdefault(metric, []).append((int(row["step"]), float(value)))
        problems = []
        for metric, unsorted in spooled.items():
            found, rows = self._house.mlflow.history(run["id"], metric), sorted(unsorted)
            if [step for step, _ in found] != [step for step, _ in rows]:
                problems.append(f"{name}: {metric} has {len(found)} steps for {len(rows)}")
            elif not metric.startswith(_MEASURED) and not _are_near(found, rows):
                problems.append(f"{name}: {metric} has other values")
        return problems

    def _fsck(self) -> list[str]:
        findings = inspect(self._house.store, self._house.where).findings
        return [f"fsck: {finding.file}: {finding.problem}" for finding in findings]


def _are_near(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        math.isclose(a, b, rel_tol=_MOST_DIFFERENCE, abs_tol=_MOST_DIFFERENCE)
        for (_, a), (_, b) in pairs
    )
