"""Run a stage: reuse its result or make it, in this process or in many, and record what was made.

Three ways lead here and agree on what is done, because they ask the same store: a task of a flow
(`run_stage`), the command line (`rlhf stage …`), and a launcher (`torchrun -m stages.sft …`).
"""

import argparse
import contextlib
import functools
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from data_contracts.artifacts import inputs_of
from data_contracts.base import StageConfig
from data_contracts.durable import disk_error, disk_full, is_disk_full
from data_contracts.errors import UserError
from data_contracts.keys import stage_key
from data_contracts.provenance import code_digest, git_commit, package_versions
from data_contracts.store import Manifest, Store, attempt_number
from stages.runtime import attempts
from stages.runtime.attempts import StageFailed
from stages.runtime.determinism import seed_everything
from stages.runtime.distributed import (
    PATIENCE_MINUTES,
    PATIENCE_VARIABLE,
    Rank,
    leave_process_group,
    process_group,
    under_launcher,
)
from stages.runtime.gpus import gpu_memory_returned, reserved, visible_gpus
from stages.runtime.heap import keep_freed_memory
from stages.runtime.launched import run_attempts, time_limit
from stages.runtime.launcher import Launch
from stages.runtime.supervisor import die_with_parent, wait_for_end
from stages.runtime.workdir import WorkDir

__all__ = [
    "Launch",
    "StageFailed",
    "StageOutput",
    "StageResult",
    "WorkDir",
    "main",
    "run_stage",
    "stage_code",
    "stage_module",
]
LOG = logging.getLogger(__name__)

_CODE_PACKAGES = ("data_contracts", "kernels", "stages")
_DISTRIBUTIONS = ("torch", "deepspeed", "numpy", "pyarrow", "sentencepiece", "safetensors")
"""Installed packages whose version can change a number."""


@dataclass
class StageOutput:
    """What a stage's body made: folders by role with their kind, and numbers for the manifest."""

    artifacts: dict[str, tuple[Path, str]]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    """The manifest of a stage, and whether it was there already."""

    manifest: Manifest
    reused: bool


@dataclass(frozen=True)
class _Stage:
    name: str
    version: str
    module: str
    """Dotted name for `python -m`."""
    run: Callable[[Any, WorkDir], StageOutput]


def stage_module(name: str) -> ModuleType:
    """The module of a stage: VERSION, Config and run(config, work). A dotted name is taken as is.

    Raises UserError when there is none of that name.
    """
    full_name = name if "." in name else f"stages.{name}"
    try:
        module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name not in (full_name, full_name.rpartition(".")[0]):
            raise
        raise UserError(f"There is no stage {name!r}", "Name a module of stages/") from error
    missing = [part for part in ("VERSION", "Config", "run") if not hasattr(module, part)]
    if missing:
        raise UserError(f"{full_name} is not a stage: no {', '.join(missing)}", "Name another")
    return module


def run_stage(
    stage: str,
    config: StageConfig,
    store: Store,
    *,
    force: bool = False,
    launch: Launch | None = None,
) -> StageResult:
    """The stage's result for this config: from the store if it is there and whole, else made now.

    Args:
        stage: name of a module of stages/, e.g. "reward_model".
        config: an instance of that module's Config.
        store: where results are kept.
        force: make it again; a re-run with the same seed gives the same digests (on CPU).
        launch: how many processes; ignored under a launcher, whose ranks all call this.

    Raises:
        UserError: something the user can mend; the attempt's folder keeps config, log and metrics.
        StageFailed: a launched stage failed otherwise; its log is named.
    """
    module = stage_module(stage)
    return _run(
        _Stage(stage, module.VERSION, module.__name__, module.run),
        config,
        store,
        force,
        launch or Launch(),
    )


def _run(
    stage: _Stage, config: StageConfig, store: Store, force: bool, launch: Launch
) -> StageResult:
    key = stage_key(stage.name, stage.version, config)
    if launch.inline or under_launcher():
        with _threads(launch.num_threads):
            return _run_here(stage, config, store, key, force, process_group(), launch)
    return _run_launched(stage, config, store, key, force, launch)


def _run_here(
    stage: _Stage,
    config: StageConfig,
    store: Store,
    key: str,
    force: bool,
    rank: Rank,
    launch: Launch,
) -> StageResult:
    """In this process, alone or as one of the ranks that a user's launcher started."""
    gpus = visible_gpus()[rank.local_index :][:1] if launch.uses_gpus else []
    with store.lock(key) if rank.is_main else contextlib.nullcontext():
        found = rank.broadcast_object(_found(stage, store, key, force) if rank.is_main else None)
        if found is not None:
            return StageResult(found, True)
        if rank.is_main:
            wait_for_end(store.work(key))
        made = attempts.new_attempt(store, key, config, force) if rank.is_main else None
        attempt = rank.broadcast_object(made)
        assert attempt is not None
        with reserved(gpus), gpu_memory_returned(), time_limit(stage.name, launch):
            return StageResult(_attempt(stage, config, store, key, attempt, rank), False)


def _run_launched(
    stage: _Stage, config: StageConfig, store: Store, key: str, force: bool, launch: Launch
) -> StageResult:
    """In ranks of their own; this process holds the lock and waits."""
    if store.home.startswith("memory://"):
        raise UserError(f"Several processes cannot share {store.home}", "Use a store on a disk")
    with store.lock(key):
        found = _found(stage, store, key, force)
        if found is not None:
            return StageResult(found, True)
        wait_for_end(store.work(key))  # of ranks whose parent was killed
        with reserved(visible_gpus()[: launch.num_processes] if launch.uses_gpus else []):
            new_attempt = functools.partial(attempts.new_attempt, store, key, config, force)
            manifest = run_attempts(stage.name, stage.module, new_attempt, store, key, launch)
        return StageResult(manifest, False)


def _found(stage: _Stage, store: Store, key: str, force: bool) -> Manifest | None:
    manifest, reason = (None, "forced") if force else store.check(key)
    LOG.info("%s %s: %s", stage.name, key[:12], reason)
    return manifest


def _attempt(
    stage: _Stage, config: StageConfig, store: Store, key: str, attempt: Path, rank: Rank
) -> Manifest:
    """Run the body on every rank; rank 0 then publishes the outputs and, last, the manifest."""
    started = time.monotonic()
    try:
        with _disk_errors_explained(attempt):
            seed_everything(config.seed)
            keep_freed_memory()
            output = stage.run(config, WorkDir(attempt, rank, store))
            rank.barrier()
            manifest = None
            if rank.is_main:
                seconds = time.monotonic() - started
                manifest = _commit(stage, config, store, key, attempt, output, seconds)
            manifest = rank.broadcast_object(manifest)
    except BaseException as error:
        attempts.abandon_attempt(attempt, rank.index, error)
        raise
    assert manifest is not None
    return manifest


def _commit(
    stage: _Stage,
    config: StageConfig,
    store: Store,
    key: str,
    attempt: Path,
    output: StageOutput,
    seconds: float,
) -> Manifest:
    num_rows = {
        role: _num_rows(folder) for role, (folder, kind) in output.artifacts.items() if "/" in kind
    }
    outputs = {
        role: store.publish(folder, kind) for role, (folder, kind) in output.artifacts.items()
    }
    manifest = Manifest(
        key=key,
        stage=stage.name,
        stage_version=stage.version,
        config=config.model_dump(mode="json"),
        inputs=inputs_of(config),
        outputs=outputs,
        metrics=output.metrics,
        num_rows=num_rows,
        code_digest=stage_code(stage.module),
        git_commit=git_commit("stages"),
        packages=package_versions(_DISTRIBUTIONS),
        seconds=seconds,
        attempt=attempt_number(attempt),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store.commit(manifest)
    attempts.close_attempt(attempt)
    return manifest


def stage_code(module: str) -> str:
    """Digest of the sources behind a stage: of its module and of all that it imports of ours.

    It is recorded in the manifest; a plan compares it with the sources that there are now.
    """
    return code_digest(module, {*_CODE_PACKAGES, module.partition(".")[0]})


def _num_rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


@contextlib.contextmanager
def _disk_errors_explained(attempt: Path) -> Iterator[None]:
    """A full disk as a paragraph with a remedy, whichever library met it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever class the library has for it; all others go on
        if not is_disk_full(error):
            raise
        raise disk_full("write below", attempt.parent) from error


@contextlib.contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        if num_threads is not None:
            torch.set_num_threads(before)


def main(config_type: type[StageConfig], run: Callable[[Any, WorkDir], StageOutput]) -> None:
    """The command line of a stage module, under python, torchrun and deepspeed alike.

    Ends the process with 0, or with 2 after one paragraph about what the user can mend.
    """
    module = sys.modules[run.__module__]
    if module.__spec__ is None:
        sys.exit("Run a stage as a module: python -m stages.NAME --config FILE")
    arguments = _parse(module.__spec__.name, module.__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.patience_minutes is not None:
        os.environ[PATIENCE_VARIABLE] = str(arguments.patience_minutes)
    if arguments.attempt is not None:
        die_with_parent(os.getppid())
    try:
        result = _main(module, config_type, run, arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if os.environ.get("RANK", "0") == "0":
        print("reused" if result.reused else "done", result.manifest.key)
        for role, reference in result.manifest.outputs.items():
            print(f"  {role}: {reference.kind} {reference.digest}")
    leave_process_group()


def _main(
    module: ModuleType,
    config_type: type[StageConfig],
    run: Callable[[Any, WorkDir], StageOutput],
    arguments: argparse.Namespace,
) -> StageResult:
    assert module.__spec__ is not None
    name = module.__spec__.name
    stage = _Stage(name.removeprefix("stages."), module.VERSION, name, run)
    config = _read_config(arguments.config, config_type)
    store = Store.open(arguments.home)
    launch = Launch(arguments.num_processes, num_threads=arguments.num_threads)
    if arguments.attempt is None:
        return _run(stage, config, store, arguments.force, launch)
    # The process that launched this rank holds the lock and has made the attempt's folder.
    key = stage_key(stage.name, stage.version, config)
    assert arguments.attempt.parent.name == key, "parent and rank agree on what is run"
    with _threads(launch.num_threads):
        rank = process_group()
        manifest = _attempt(stage, config, store, key, arguments.attempt, rank)
        return StageResult(manifest, reused=False)


def _parse(name: str, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="the stage's config as JSON")
    parser.add_argument(
        "--home",
        default=os.environ.get("RLHF_HOME", "rlhf_home"),
        help="the store: a folder or a URL (default: $RLHF_HOME, else rlhf_home)",
    )
    parser.add_argument("--force", action="store_true", help="make the result again")
    parser.add_argument(
        "--num-processes", type=int, default=1, help="ranks to start; not under a launcher"
    )
    parser.add_argument("--num-threads", type=int, help="threads of each process inside torch")
    parser.add_argument(
        "--patience-minutes",
        type=float,
        help=f"how long ranks wait for one another (default: ${PATIENCE_VARIABLE}, else "
        f"{PATIENCE_MINUTES:g})",
    )
    parser.add_argument("--attempt", type=Path, help=argparse.SUPPRESS)  # a launched rank's folder
    return parser.parse_args()


def _read_config(path: Path, config_type: type[StageConfig]) -> StageConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise disk_error("read", path, error) from error
    try:
        return config_type.model_validate_json(text)
    except ValidationError as error:
        # Without the values: a config may hold prompts.
        problems = "; ".join(
            f"{'.'.join(map(str, detail['loc'])) or 'file'}: {detail['msg']}"
            for detail in error.errors()
        )
        raise UserError(f"{path} is not a config of this stage: {problems}", "Correct it") from None
