"""MLflow: an experiment for the product, a run for each version, a child for each stage key.

MLflow only looks on. Training writes `metrics.jsonl`; this process sends it in batches, keeps its
offset, and finds every run again by tag. When the tracking server cannot be reached it warns once
and the pipeline goes on; a later walk records what is missing from the manifests.

`mlflow` is imported on first use: plan, stage --help and the like do not pay for it.
"""

import json
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.ratings import Domain
from data_contracts.store import Manifest, Store
from flows.environment import Places, prepare
from flows.graph import BASE, Node, policy, reward_model_name
from flows.recipe import Recipe
from stages.runtime.stage import inputs_of, stage_module
from stages.runtime.workdir import read_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOG = logging.getLogger(__name__)

KEY_TAG = "rlhf.stage_key"
ITERATION_TAG = "rlhf.iteration"
DIGEST_TAG = "rlhf.digest"
CHAMPION = "champion"
"""Alias of the version that the gates let through last."""
FLUSH_SECONDS = 15.0
_BATCH = 1000
"""MLflow's limit of metrics in one call."""
_MOST_PARAMS = 100
_LONGEST_PARAM = 6000
_LONGEST_DIGEST = 36
_LONGEST_REASON = 200
_PARENT_TAG = "mlflow.parentRunId"
_NAME_TAG = "mlflow.runName"

T = TypeVar("T")


def _never_fails(method: Callable[..., T]) -> Callable[..., T | None]:
    """Make a Tracker method warn once, and do nothing from then on, instead of raising."""

    @wraps(method)
    def guarded(self: "Tracker", *args: Any, **kwargs: Any) -> T | None:
        if self.broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            # whatever MLflow, its HTTP client or its database raises, or a mistake of ours: days
            # of training are worth more than their record, and the log has the traceback
            self.give_up(error)
            return None

    return guarded


class NodeRun:
    """One child run while its stage works: sends what the metrics spool has gained."""

    def __init__(self, tracker: "Tracker", node: Node, key: str, run_id: str | None) -> None:
        self._tracker = tracker
        self._node = node
        self._key = key
        self._run_id = run_id
        self._flushed_at = time.monotonic()

    def flush_sometimes(self) -> None:
        """Send new metrics, at most every FLUSH_SECONDS; called from the progress thread."""
        if self._run_id and time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self._flushed_at = time.monotonic()
            self._tracker.flush(self._key, self._run_id)


class Tracker:
    """What one walk tells MLflow."""

    def __init__(
        self,
        recipe: Recipe,
        where: Places,
        store: Store,
        warn: Callable[[str], None] = LOG.warning,
    ) -> None:
        self.recipe = recipe
        self.where = where
        self.warn = warn
        self.broken = False
        self._store = store
        self._met: set[int] = set()
        self._parents: dict[int, str] = {}
        self._sent: dict[str, int] = {}

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Mark the parents of all versions that this walk met as done, or as failed."""
        for version in self._met:
            self._close(version, failed=error is not None)

    def give_up(self, error: Exception) -> None:
        """Warn once, keep the traceback in mlflow/errors.log, and tell MLflow nothing more."""
        self.broken = True
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        self.warn(
            f"MLflow at {self.where.mlflow} is not taking records ({reason}); the run goes on, "
            "and the next one records what is missing"
        )
        with suppress(OSError):  # the disk may be full, which may be the very error
            log = self.where.local / "mlflow" / "errors.log"
            with log.open("a", encoding="utf-8") as file:
                file.writelines(traceback.format_exception(error))

    def begin(self, node: Node, key: str, config: StageConfig) -> NodeRun:
        """The child run of a stage that is about to work: a new one, or the one it had."""
        self._met.add(node.id.version)
        return NodeRun(self, node, key, self._begin(node, key, config))

    @_never_fails
    def _begin(self, node: Node, key: str, config: StageConfig) -> str:
        run = self._find(KEY_TAG, key)
        if run is None:
            return self._create_child(node, key, config)
        self._parent(node.id.version)
        self._client.update_run(run.info.run_id, status="RUNNING")
        return run.info.run_id

    @_never_fails
    def flush(self, key: str, run_id: str) -> None:
        """Send the metrics that a key's spool holds and MLflow has not got yet."""
        rows = read_metrics(self._store, key)
        done = self._offset(key, run_id)
        metrics = [m for row in rows if row["step"] >= done for m in self._metrics_of(row)]
        for i in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[i : i + _BATCH])
        if metrics:
            self._sent[key] = rows[-1]["step"] + 1
            self._client.set_tag(run_id, "rlhf.spool_step", str(self._sent[key]))

    @_never_fails
    def record(self, node: Node, manifest: Manifest, store: Store) -> None:
        """A finished node: nothing when MLflow has it already, else all that the manifest says."""
        self._met.add(node.id.version)
        run = self._find(KEY_TAG, manifest.key)
        if (
            run
            and run.info.status == "FINISHED"
            and run.data.tags.get("rlhf.finished_at") == (manifest.finished_at)
        ):
            return
        config = stage_module(node.stage).Config.model_validate(manifest.config)
        run_id = run.info.run_id if run else self._create_child(node, manifest.key, config)
        self.flush(manifest.key, run_id)
        if self.broken:
            return
        self._log_result(run_id, manifest)
        self._register(node, manifest, run_id, store)
        self._client.set_terminated(run_id, "FINISHED")

    def pages(self) -> dict[str, str]:
        """MLflow's page of each stage key's run; none when MLflow is no server."""
        return self._pages() or {} if self.where.mlflow.startswith("http") else {}

    @_never_fails
    def _pages(self) -> dict[str, str]:
        base = f"{self.where.mlflow.rstrip('/')}/#/experiments/{self._experiment}/runs"
        runs = self._search(f"tags.`{KEY_TAG}` LIKE '%'")
        return {run.data.tags[KEY_TAG]: f"{base}/{run.info.run_id}" for run in runs}

    @_never_fails
    def _close(self, version: int, failed: bool) -> None:
        """End a version's parent run; it and children that still say RUNNING may be a killed
        process's."""
        parent = self._find(ITERATION_TAG, _parent_name(version))
        if parent is None or (parent.info.status == "FINISHED" and not failed):
            return
        for run in self._search(f"tags.`{_PARENT_TAG}` = '{parent.info.run_id}'"):
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "FAILED")
        self._client.set_terminated(parent.info.run_id, "FAILED" if failed else "FINISHED")

    # --- runs ---

    @cached_property
    def _client(self) -> "MlflowClient":
        prepare(self.where)
        from mlflow import MlflowClient

        if self.where.mlflow == f"sqlite:///{self.where.mlflow_database}":
            ensure_database(self.where.mlflow_database)
        return MlflowClient(self.where.mlflow, registry_uri=self.where.mlflow)

    @cached_property
    def _experiment(self) -> str:
        """Id of the product's experiment, made when it is not there."""
        found = self._client.get_experiment_by_name(self.recipe.product)
        if found is not None:
            return found.experiment_id
        # a server knows where its artifacts go; the file store's default is the current folder
        is_local = self.where.mlflow.startswith("sqlite:")
        return self._client.create_experiment(
            self.recipe.product,
            artifact_location=self.where.mlflow_artifacts if is_local else None,
        )

    def _search(self, condition: str) -> "Sequence[Run]":
        return self._client.search_runs([self._experiment], condition)

    def _find(self, tag: str, value: str) -> "Run | None":
        runs = self._search(f"tags.`{tag}` = '{value}'")
        return runs[0] if runs else None

    def _parent(self, version: int) -> str:
        """Id of a version's run, which says RUNNING from now on."""
        if version not in self._parents:
            name = _parent_name(version)
            run = self._find(ITERATION_TAG, name) or self._client.create_run(
                self._experiment,
                tags={_NAME_TAG: name, ITERATION_TAG: name, "rlhf.recipe": self.recipe.name},
            )
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._parents[version] = run.info.run_id
        return self._parents[version]

    def _create_child(self, node: Node, key: str, config: StageConfig) -> str:
        from mlflow.entities import Param

        tags = {
            _NAME_TAG: node.id.name,
            _PARENT_TAG: self._parent(node.id.version),
            KEY_TAG: key,
            "rlhf.stage": node.stage,
            "rlhf.version": str(node.id.version),
        }
        run_id = self._client.create_run(self._experiment, tags=tags).info.run_id
        inputs = inputs_of(config)
        input_fields = {name.split(".")[0] for name in inputs}
        params = [
            Param(k, v[:_LONGEST_PARAM])
            for k, v in _flat(config.meaning())
            if k.split(".")[0] not in input_fields
        ]
        for i in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[i : i + _MOST_PARAMS])
        self._log_inputs(run_id, inputs)
        return run_id

    def _log_inputs(self, run_id: str, named: Mapping[str, ArtifactRef]) -> None:
        """Inputs as datasets; MLflow's digest is too short for ours, so a tag has all of it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag

        datasets = [
            DatasetInput(
                Dataset(
                    name=name,
                    digest=ref.digest[:_LONGEST_DIGEST],
                    source_type="rlhf_store",
                    source=json.dumps({"uri": f"{self.where.home}/objects/{ref.digest}"}),
                    profile=json.dumps({"kind": ref.kind}),
                ),
                [InputTag("mlflow.data.context", name)],
            )
            for name, ref in named.items()
        ]
        if datasets:
            self._client.log_inputs(run_id, datasets)
            tags = [RunTag(f"rlhf.input.{name}", ref.digest) for name, ref in named.items()]
            self._client.log_batch(run_id, tags=tags)

    def _log_result(self, run_id: str, manifest: Manifest) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        values = {**manifest.metrics, "seconds": manifest.seconds}
        values |= {f"num_rows/{role}": float(n) for role, n in manifest.num_rows.items()}
        metrics = [
            Metric(f"final/{_metric_name(name)}", value, now, 0)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        tags = [RunTag(f"rlhf.output.{role}", ref.digest) for role, ref in manifest.outputs.items()]
        tags += [
            RunTag("rlhf.git_commit", manifest.git_commit),
            RunTag("rlhf.code_digest", manifest.code_digest),
            RunTag("rlhf.finished_at", manifest.finished_at),
        ]
        self._client.log_batch(run_id, metrics=metrics, tags=tags)

    # --- metrics ---

    def _offset(self, key: str, run_id: str) -> int:
        if key not in self._sent:
            tags = self._client.get_run(run_id).data.tags
            self._sent[key] = int(tags.get("rlhf.spool_step", -1))
        return self._sent[key]

    def _metrics_of(self, row: Mapping[str, Any]) -> Iterator[Any]:
        from mlflow.entities import Metric

        at = int(row["time"] * 1000)
        for name, value in row.items():
            is_metric = name not in ("step", "time") and isinstance(value, int | float)
            if is_metric and math.isfinite(value):
                yield Metric(_metric_name(name), float(value), at, int(row["step"]))

    # --- registered models ---

    @_never_fails
    def promote(self, version: int, digests: Mapping[str, str]) -> None:
        """Make models of an iteration the champions, by name and digest.

        Called by the gates alone. A champion of a later iteration stays.
        """
        for name, digest in digests.items():
            versions = self._client.search_model_versions(f"name = '{name}'")
            own = [v for v in versions if _is_model(v.tags, digest, version)]
            aliases = self._client.get_registered_model(name).aliases if own else {}
            champion = next(
                (v for v in versions if str(v.version) == str(aliases.get(CHAMPION))), None
            )
            is_later = champion is not None and int(champion.tags[ITERATION_TAG]) > version
            if own and not is_later:
                newest = max(own, key=lambda v: int(v.version))
                self._client.set_registered_model_alias(name, CHAMPION, newest.version)

    def _register(self, node: Node, manifest: Manifest, run_id: str, store: Store) -> None:
        """A version of `policy`, `helpfulness-rm` or `safety-rm` when the node makes one."""
        name = registered_name(self.recipe, node)
        if name is None:
            return
        ref = manifest.outputs["model"]
        self._ensure_registered(name)
        iteration = str(node.id.version)
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if _is_model(version.tags, ref.digest, node.id.version):
                return
        from mlflow import create_external_model, set_tracking_uri

        set_tracking_uri(self.where.mlflow)
        tags = {
            DIGEST_TAG: ref.digest,
            ITERATION_TAG: iteration,
            "rlhf.path": str(store.local(ref)),
        }
        model = create_external_model(
            f"{name}-v{iteration}",
            source_run_id=run_id,
            tags=tags,
            experiment_id=self._experiment,
        )
        self._client.create_model_version(
            name,
            source=f"models:/{model.model_id}",
            run_id=run_id,
            tags=tags,
            model_id=model.model_id,
        )

    def _ensure_registered(self, name: str) -> None:
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)


def _is_model(tags: Mapping[str, str] | None, digest: str, iteration: int) -> bool:
    """Whether a model version's tags say that it is this model of this iteration."""
    found = tags or {}
    return (found.get(DIGEST_TAG), found.get(ITERATION_TAG)) == (digest, str(iteration))


def _parent_name(version: int) -> str:
    return "Base" if version == BASE else f"RLHF-V{version}"


def registered_name(recipe: Recipe, node: Node) -> str | None:
    """Name in the model registry of what a node of an iteration makes, if it is registered."""
    version = node.id.version
    if version == BASE:
        return None
    if policy(recipe, version).node == node.id:
        return "policy"
    names = {reward_model_name(domain): f"{domain.value}-rm" for domain in Domain}
    return names.get(node.id.name)


def ensure_database(path: Path) -> None:
    """Make MLflow's database, when there is none, whole or not at all: one whose tables a kill or a
    full disk left half made MLflow refuses for good."""
    if path.exists():
        return
    from mlflow import MlflowClient

    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.unlink(missing_ok=True)
    try:
        MlflowClient(f"sqlite:///{unfinished}").search_experiments()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits, _ - . / : and spaces."""
    return "".join(c if c.isalnum() or c in "_-./: " else "_" for c in name)
