"""MLflow: an experiment for the product, a run for each version, a child for each stage key.

MLflow only looks on. Training writes `metrics.jsonl`; this process sends it in batches, keeps its
offset, and finds every run again by tag. When the tracking server cannot be reached it warns once
and the pipeline goes on. It is asked again twice a minute, and gets what it missed when it is back,
or from the manifests and the spools in a later walk.

`mlflow` is imported on first use: plan, stage --help and the like do not pay for it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_contracts.artifacts import ArtifactRef, inputs_of
from data_contracts.base import StageConfig
from data_contracts.errors import StoreError
from data_contracts.store import Manifest, Store
from flows.environment import Places, prepare
from flows.node import BASE, Node
from flows.recipe import Recipe
from flows.tracking.access import all_pages, ensure_database
from flows.tracking.entities import BATCH, batches, datasets_of, metrics_now, metrics_of, params_of
from flows.tracking.outage import Onlooker, never_fails
from flows.tracking.registry import ITERATION_TAG, Moves, Registry, registered_name
from stages.runtime.stage import stage_module
from stages.runtime.workdir import read_metrics, read_samples

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOG = logging.getLogger(__name__)

KEY_TAG = "rlhf.stage_key"
FLUSH_SECONDS = 15.0
FIRST_FLUSH_SECONDS = 5.0
"""Until a stage's run appears. To import `mlflow` takes seconds, which the first step need not wait
for: later it happens beside the training."""
_PAGE = 1000
"""Runs in one answer."""
_PARENT_TAG = "mlflow.parentRunId"
_NAME_TAG = "mlflow.runName"


class NodeRun:
    """One child run while its stage works: sends what the metrics spool has gained."""

    def __init__(self, tracker: "Tracker", node: Node, key: str, config: StageConfig) -> None:
        self._tracker = tracker
        self._node = node
        self._key = key
        self._config = config
        self._began_at = time.time()
        self._run_id: str | None = None
        self._flush_at = time.monotonic() + FIRST_FLUSH_SECONDS

    def flush_sometimes(self) -> None:
        """Send new metrics, at most every FLUSH_SECONDS; called from the progress thread."""
        if time.monotonic() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Send new metrics now; the run is found or made first where that is still to do."""
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        self._run_id = self._run_id or self._tracker.child(
            self._node, self._key, self._config, self._began_at
        )
        if self._run_id:
            self._tracker.flush(self._key, self._run_id)


class _Recorded(NamedTuple):
    """A stage key that MLflow has all of."""

    run_id: str
    finished_at: str
    """When its stage was finished, as the manifest says it."""


@dataclass(frozen=True)
class _Promotion:
    """Models of an iteration that the gates make champions, once all of them are recorded."""

    version: int
    digests: Mapping[str, str]
    """By registered name."""
    is_late: bool
    """Whether an earlier walk should have done it: then only what never was a champion becomes
    one, since whoever has set a champion back since then meant it."""


class Tracker(Onlooker):
    """What one walk tells MLflow."""

    def __init__(
        self,
        recipe: Recipe,
        where: Places,
        store: Store,
        warn: Callable[[str], None] = LOG.warning,
    ) -> None:
        super().__init__(where, warn)
        self.recipe = recipe
        self._unrecorded: dict[str, tuple[Node, Manifest, Store]] = {}
        self._promotions: list[_Promotion] = []
        self._at_work: NodeRun | None = None
        self._store = store
        self._met: set[int] = set()
        self._told: set[int] = set()
        """Versions of which this walk has recorded anything that MLflow had not got."""
        self._parents: dict[int, str] = {}
        self._sent: dict[str, int] = {}
        self._known: dict[str, _Recorded] | None = None
        """By stage key; asked for once."""

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Send what is missing; mark the parents of all versions that this walk met as done or
        failed."""
        self.ask_now()
        if error is not None and self._at_work is not None:
            self._at_work.flush()  # of the stage that failed
        self._catch_up()
        for version in self._met:
            self._close(version, failed=error is not None)
        for version in self._told - self._met:
            self._close(version, failed=False)  # one that was complete before

    def begin(self, node: Node, key: str, config: StageConfig) -> NodeRun:
        """The child run of a stage that is about to work: a new one, or the one it had. MLflow is
        asked for it by the first flush."""
        self._met.add(node.id.version)
        self._at_work = NodeRun(self, node, key, config)
        return self._at_work

    @never_fails
    def child(self, node: Node, key: str, config: StageConfig, began_at: float) -> str:
        """Id of a stage key's run, which says RUNNING from now on; Unix seconds of its begin."""
        run = self._find(KEY_TAG, key)
        if run is None:
            return self._create_child(node, key, config, began_at)
        self._parent(node.id.version)
        self._client.update_run(run.info.run_id, status="RUNNING")
        return run.info.run_id

    @never_fails
    def flush(self, key: str, run_id: str) -> None:
        """Send the metrics that a key's spool holds and MLflow has not got yet."""
        self._flush(key, run_id)

    def _flush(self, key: str, run_id: str) -> None:
        from mlflow.entities import RunTag

        done = self._offset(key, run_id)
        rows = [row for row in read_metrics(self._store, key) if row["step"] >= done]
        for batch in batches([(int(row["step"]), metrics_of(row)) for row in rows]):
            # The offset goes with the metrics: after a crash between the two, a step that was made
            # again meanwhile would be sent again, and stand there twice.
            tag = RunTag("rlhf.spool_step", str(batch.next_step))
            self._client.log_batch(run_id, metrics=batch.metrics, tags=[tag])
            self._sent[key] = batch.next_step
        self._send_samples(key, run_id)

    def _send_samples(self, key: str, run_id: str) -> None:
        """Tables of samples that MLflow has not got, each a file of its own, samples/00000010.json:
        one that is there is whole, so none is ever sent twice."""
        if not (tables := read_samples(self._store, key)):
            return
        there = {file.path for file in self._client.list_artifacts(run_id, "samples")}
        for step, rows in tables.items():
            if (name := f"samples/{step}.json") not in there:
                columns = {column: [row[column] for row in rows] for column in rows[0]}
                self._client.log_table(run_id, columns, name)

    def record(self, node: Node, manifest: Manifest, store: Store) -> None:
        """A finished node: nothing when MLflow has it already, else all that the manifest says."""
        self._met.add(node.id.version)
        self._at_work = None
        self._unrecorded[manifest.key] = (node, manifest, store)
        self._catch_up()

    def remember(self, node: Node, manifest: Manifest, store: Store) -> None:
        """A node that was finished before this walk: what MLflow has missed of it is recorded with
        what this walk records."""
        self._unrecorded[manifest.key] = (node, manifest, store)

    @never_fails
    def _catch_up(self) -> None:
        """Record what is finished and not recorded, in the order in which it was finished, and then
        move the champions: a model has to be registered first."""
        while self._unrecorded:
            key = next(iter(self._unrecorded))
            self._record(*self._unrecorded[key])
            del self._unrecorded[key]
        while self._promotions:
            self._promote(self._promotions[0])
            del self._promotions[0]

    def _record(self, node: Node, manifest: Manifest, store: Store) -> None:
        known = self._recorded().get(manifest.key)
        if known is not None and known.finished_at == manifest.finished_at:
            # it may have become the policy since it was recorded: the recipe has dropped PPO
            self._register(node, manifest, known.run_id, store)
            return
        run = self._find(KEY_TAG, manifest.key)
        if run is not None:
            run_id, ended = run.info.run_id, None  # now: it is over since a moment
        else:
            if (config := _config_of(node, manifest)) is None:
                return
            ended_at = datetime.fromisoformat(manifest.finished_at).timestamp()
            began_at, ended = ended_at - manifest.seconds, int(ended_at * 1000)
            run_id = self._create_child(node, manifest.key, config, began_at)
        self._flush(manifest.key, run_id)
        self._log_result(run_id, manifest)
        self._register(node, manifest, run_id, store)
        self._client.set_terminated(run_id, "FINISHED", end_time=ended)
        self._recorded()[manifest.key] = _Recorded(run_id, manifest.finished_at)
        self._told.add(node.id.version)

    def _recorded(self) -> dict[str, _Recorded]:
        """What MLflow has already: one question for a whole walk, and not one for each node."""
        if self._known is None:
            finished = self._search(f"attributes.status = 'FINISHED' AND tags.`{KEY_TAG}` LIKE '%'")
            self._known = {
                run.data.tags[KEY_TAG]: _Recorded(
                    run.info.run_id, run.data.tags.get("rlhf.finished_at", "")
                )
                for run in finished
            }
        return self._known

    def pages(self) -> dict[str, str]:
        """MLflow's page of each stage key's run; none when MLflow is no server."""
        return self._pages() or {} if self.where.mlflow.startswith("http") else {}

    @never_fails
    def _pages(self) -> dict[str, str]:
        base = f"{self.where.mlflow.rstrip('/')}/#/experiments/{self._experiment}/runs"
        runs = self._search(f"tags.`{KEY_TAG}` LIKE '%'")
        return {run.data.tags[KEY_TAG]: f"{base}/{run.info.run_id}" for run in runs}

    @never_fails
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

    def _search(self, condition: str) -> "list[Run]":
        """All runs that fulfil a condition; MLflow gives them a page at a time."""
        return list(
            all_pages(
                lambda token: self._client.search_runs(
                    [self._experiment], condition, max_results=_PAGE, page_token=token
                )
            )
        )

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

    def _create_child(self, node: Node, key: str, config: StageConfig, began_at: float) -> str:
        tags = {
            _NAME_TAG: node.id.name,
            _PARENT_TAG: self._parent(node.id.version),
            KEY_TAG: key,
            "rlhf.stage": node.stage,
            "rlhf.version": str(node.id.version),
        }
        created = self._client.create_run(
            self._experiment, start_time=int(began_at * 1000), tags=tags
        )
        run_id = created.info.run_id
        inputs = inputs_of(config)
        for params in params_of(config, {name.split(".")[0] for name in inputs}):
            self._client.log_batch(run_id, params=params)
        self._log_inputs(run_id, inputs)
        return run_id

    def _log_inputs(self, run_id: str, named: Mapping[str, ArtifactRef]) -> None:
        """Inputs as datasets; MLflow's digest is too short for ours, so a tag has all of it."""
        from mlflow.entities import RunTag

        datasets = datasets_of(named, self.where.home)
        if datasets:
            self._client.log_inputs(run_id, datasets)
            tags = [RunTag(f"rlhf.input.{name}", ref.digest) for name, ref in named.items()]
            self._client.log_batch(run_id, tags=tags)

    def _log_result(self, run_id: str, manifest: Manifest) -> None:
        from mlflow.entities import RunTag

        values = {**manifest.metrics, "seconds": manifest.seconds}
        values |= {f"num_rows/{role}": float(n) for role, n in manifest.num_rows.items()}
        metrics = metrics_now({f"final/{name}": value for name, value in values.items()})
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

    @never_fails
    def log_report(
        self, name: str, metrics: Mapping[str, float], tags: Mapping[str, str], folder: Path
    ) -> None:
        """A run of its own for a report: its numbers, its verdicts as tags, and its files."""
        from mlflow.entities import RunTag

        run_id = self._client.create_run(self._experiment, tags={_NAME_TAG: name}).info.run_id
        named = metrics_now(metrics)
        for i in range(0, len(named), BATCH):
            self._client.log_batch(run_id, metrics=named[i : i + BATCH])
        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        self._client.log_artifacts(run_id, str(folder))
        self._client.set_terminated(run_id, "FINISHED")

    # --- registered models ---

    def promote(self, version: int, digests: Mapping[str, str]) -> None:
        """Make models of an iteration champions for the gates, by registered name and digest: now,
        or once MLflow answers and has what was recorded before."""
        self._promotions.append(_Promotion(version, digests, is_late=False))
        self._catch_up()

    def promote_late(self, version: int, digests: Mapping[str, str]) -> None:
        """The same for an iteration that was judged before this walk, with what this walk records;
        what has been a champion already is left as it is."""
        self._promotions.append(_Promotion(version, digests, is_late=True))

    @never_fails
    def promote_for(self, version: int, digests: Mapping[str, str], why: str) -> Moves:
        """The same at once, for a person with a reason; None when MLflow does not answer."""
        return self._registry.promote(version, digests, why)

    def _promote(self, promotion: _Promotion) -> None:
        version, digests = promotion.version, promotion.digests
        if promotion.is_late:
            digests = self._registry.never_promoted(version, digests)
        self._registry.promote(version, digests, "gates")

    @cached_property
    def _registry(self) -> Registry:
        return Registry(self._client, self.where.mlflow, self._experiment)

    def _register(self, node: Node, manifest: Manifest, run_id: str, store: Store) -> None:
        """What a node has made, when it is a model that is registered."""
        if (name := registered_name(self.recipe, node)) is not None:
            ref = manifest.outputs["model"]
            if self._registry.has(name, node.id.version, ref.digest):
                return  # before its files are looked at, each of which is hashed
            with suppress(StoreError):  # an old model's files are gone: that holds up no new one
                path = str(store.local(ref))
                self._registry.register(name, node.id.version, ref.digest, path, run_id)


def _config_of(node: Node, manifest: Manifest) -> StageConfig | None:
    """What a node was run with; None when an older version of the stage wrote what this one cannot
    read, which must not hold up the records of what comes after it."""
    try:
        return stage_module(node.stage).Config.model_validate(manifest.config)
    except ValueError:
        return None


def _parent_name(version: int) -> str:
    return "Base" if version == BASE else f"RLHF-V{version}"
