"""What MLflow takes: parameters, metrics and datasets, cut to what one call may hold."""

import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Param

BATCH = 999
"""Metrics in one call, beside a tag: MLflow's limit is 1000 in all."""
_MOST_PARAMS = 100
_LONGEST_PARAM = 6000
_LONGEST_DIGEST = 36


# --- parameters and inputs ---


def params_of(config: StageConfig, without: Collection[str]) -> "Iterator[list[Param]]":
    """What a config means, by dotted name and in lists for one call each; these fields left out."""
    from mlflow.entities import Param

    params = [
        Param(name, value[:_LONGEST_PARAM])
        for name, value in _flat(config.meaning())
        if name.split(".")[0] not in without
    ]
    for i in range(0, len(params), _MOST_PARAMS):
        yield params[i : i + _MOST_PARAMS]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def datasets_of(named: Mapping[str, ArtifactRef], home: str) -> "list[DatasetInput]":
    """Artifacts of a home as datasets, by the field that names them."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=name,
                digest=ref.digest[:_LONGEST_DIGEST],
                source_type="rlhf_store",
                source=json.dumps({"uri": f"{home}/objects/{ref.digest}"}),
                profile=json.dumps({"kind": ref.kind}),
            ),
            [InputTag("mlflow.data.context", name)],
        )
        for name, ref in named.items()
    ]


# --- metrics ---


def metrics_now(values: Mapping[str, float]) -> "list[Metric]":
    """Finite values as metrics of this moment, at step 0."""
    return _metrics(values, int(time.time() * 1000), 0)


def metrics_of(row: Mapping[str, Any]) -> "list[Metric]":
    """A row of the metrics spool: its finite numbers at its own time and step."""
    values = {
        name: value
        for name, value in row.items()
        if name not in ("step", "time") and isinstance(value, int | float)
    }
    return _metrics(values, int(row["time"] * 1000), int(row["step"]))


def _metrics(values: Mapping[str, float], milliseconds: int, step: int) -> "list[Metric]":
    from mlflow.entities import Metric

    return [
        Metric(_allowed(name), float(value), milliseconds, step)
        for name, value in values.items()
        if math.isfinite(value)
    ]


def _allowed(name: str) -> str:
    """MLflow takes letters, digits, _ - . / : and spaces."""
    return "".join(c if c.isalnum() or c in "_-./: " else "_" for c in name)


class Batch(NamedTuple):
    """Metrics of whole steps."""

    metrics: list[Any]
    next_step: int
    """The first step that is not in it, nor in an earlier one."""


def batches(steps: Sequence[tuple[int, list[Any]]]) -> Iterator[Batch]:
    """As few batches as hold the metrics of these steps, each step whole."""
    metrics: list[Any] = []
    next_step = 0
    for step, own in steps:
        if metrics and len(metrics) + len(own) > BATCH:
            yield Batch(metrics, next_step)
            metrics = []
        metrics = [*metrics, *own]
        next_step = step + 1
    if metrics:
        yield Batch(metrics, next_step)
