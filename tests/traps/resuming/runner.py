"""Run stages in processes of their own, and kill them: python -m resuming.runner JOBS.json

The modules are imported once; then every rank of every job is a fork, which joins its peers over
localhost as a launcher would have it. A job that is to be killed gets SIGKILL, from itself, at an
exact place in its stage.
"""

import contextlib
import io
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    import deepspeed  # noqa: F401 - imported before the forks, for all of them

import torch
from resuming.bugs import BUGS
from resuming.jobs import Job, Kill

from data_contracts.store import Store
from stages.runtime import attempts, checkpoints, settings, workdir
from stages.runtime.checkpoints import Checkpointer, Resumed
from stages.runtime.engine import Engine
from stages.runtime.stage import run_stage, stage_module

MEASURED = ("time", "throughput/", "energy/")
"""Names of metrics that no two runs have in common."""


def main(jobs: Sequence[Job]) -> None:
    for job in jobs:
        ranks = [fork(job, rank, port) for port in [free_port()] for rank in range(job.num_ranks)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        wanted = -signal.SIGKILL if job.kill else 0
        # When one rank is killed, the others may notice before their own turn comes.
        if wanted not in statuses or (wanted == 0 and any(statuses)):
            sys.exit(f"{job.stage} in {job.home} ended with {statuses} instead of {wanted}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(job: Job, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if job.num_ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"WORLD_SIZE": str(job.num_ranks), "MASTER_PORT": str(port)}
        run(job, rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(job: Job, rank: int) -> None:
    torch.set_num_threads(1)
    settings._PERSISTENT_ELEMENTS = 0  # or ZeRO-3 would keep so small a model whole everywhere
    if job.bug:
        plant, _ = BUGS[job.bug]
        plant()
    found: dict[str, Any] = {"resumed_after": []}
    observe(found)
    if job.kill:
        arm(job.kill)
    config = stage_module(job.stage).Config.model_validate_json(job.config)
    store = Store.open(job.home)
    manifest = run_stage(job.stage, config, store).manifest
    if rank == 0:
        rows = workdir.read_metrics(store, manifest.key)
        found["outputs"] = {role: ref.digest for role, ref in manifest.outputs.items()}
        found["metrics"] = [
            {name: value for name, value in row.items() if not name.startswith(MEASURED)}
            for row in rows
        ]
        found["phases"] = [[name for name in row if name.startswith("time")] for row in rows]
        Path(job.report).write_text(json.dumps(found))


def after(owner: Any, name: str, then: Callable[..., None]) -> None:
    """Have `then(result, *arguments)` called after a method."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        then(result, *arguments)
        return result

    setattr(owner, name, wrapped)


def before(owner: Any, name: str, first: Callable[..., None]) -> None:
    """Have `first(*arguments)` called before a function."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        first(*arguments)
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def observe(found: dict[str, Any]) -> None:
    """Note where the run resumed, and the digests of all files of its last checkpoint."""

    def resumed(result: Resumed, *_: Any) -> None:
        found["resumed_after"].append(result.step)

    def closing(attempt: Path) -> None:
        newest = max((attempt.parent / "checkpoints").glob("step-*"))
        found["checkpoint"] = json.loads((newest / "manifest.json").read_text())["files"]

    after(Checkpointer, "restore", resumed)
    before(attempts, "close_attempt", closing)


def arm(kill: Kill) -> None:
    """Set the place at which this process kills itself."""
    done = micro_batch = 0
    checkpointers: list[Checkpointer] = []

    def step_done(result: bool, checkpointer: Checkpointer, step: int, *_: Any) -> None:
        nonlocal done, micro_batch
        done, micro_batch = step, 0
        checkpointers[:] = [checkpointer]

    def backward(*_: Any) -> None:
        nonlocal micro_batch
        if (done, micro_batch) == (kill.done, kill.micro_batch) and not kill.in_save:
            checkpointers[0].wait()  # so that it is known which checkpoint the kill leaves
            os.kill(os.getpid(), signal.SIGKILL)
        micro_batch += 1

    def write(path: Path, *_: Any) -> None:
        if f"{kill.done:08d}" in str(path):
            path.write_bytes(b"half of")
            os.kill(os.getpid(), signal.SIGKILL)

    after(Checkpointer, "maybe_save", step_done)
    before(Engine, "backward", backward)
    if kill.in_save:
        before(checkpoints, "write_pieces", write)


if __name__ == "__main__":
    main([Job.of(fields) for fields in json.loads(Path(sys.argv[1]).read_text())])
