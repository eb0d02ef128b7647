"""How tests call `rlhf` as a user does, and the small recipe that they call it with."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.cli import app
from flows.node import version_label
from flows.planner import Step
from flows.planner import plan as plan_steps
from flows.recipe import load_recipe

TINY = Path(__file__).parent / "tiny.yaml"
BASE = ["sandbox_world", "ingest", "tokenizer", "tokenize_corpus", "pretrain", "sft"]
ITERATION = [
    "sample_pairs",
    "collect_preferences",
    "reward_model-helpfulness",
    "reward_model-safety",
    "rejection_sampling",
    "evaluate",
]
Rlhf = Callable[..., subprocess.CompletedProcess[str]]
RLHF = Path(sys.executable).parent / "rlhf"
PATIENCE_SECONDS = 900
"""For one command that takes 30 s: a busy machine may be ten times slower than a calm one."""


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """The variables of a user's shell, without those of another Prefect or MLflow."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    return own | {"RLHF_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def run_rlhf(
    *arguments: str | Path, home: Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own, as a user runs it."""
    return subprocess.run(
        [RLHF, *map(str, arguments)],
        env=environment_of(home, **environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def rlhf_here(
    *arguments: str | Path, home: Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what asks no server and trains nothing: a new interpreter
    would take seconds to import what is here already."""
    words = [str(word) for word in arguments]
    with contextlib.chdir(cwd or Path.cwd()):
        out = CliRunner().invoke(app, words, env={"RLHF_HOME": str(home), "COLUMNS": "200"})
    if out.exception is not None and not isinstance(out.exception, SystemExit):
        raise out.exception
    return subprocess.CompletedProcess(words, out.exit_code, out.stdout, out.stderr)


def assert_one_paragraph(out: subprocess.CompletedProcess[str], *words: str) -> None:
    """What a user sees of a mistake: exit code 2 and one paragraph, which says these words."""
    assert out.returncode == 2, out.stdout[-1000:] + out.stderr[-1000:]
    assert "Traceback" not in out.stderr + out.stdout
    message = " ".join(out.stderr.split())
    for word in words:
        assert word in message, message


@contextlib.contextmanager
def running_rlhf(
    *arguments: str | Path, home: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The console script at work, in a process group of its own that does not outlive the block."""
    process = subprocess.Popen(
        [RLHF, *map(str, arguments)],
        env=environment_of(home, **environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not processes_on(home), "its processes to end")


def plan(home: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """`rlhf plan --json` by node."""
    out = rlhf_here("plan", "--recipe", TINY, "--json", *arguments, home=home)
    assert out.returncode == 0, out.stderr
    steps = json.loads(out.stdout)["steps"]
    return {f"v{step['version']}/{step['node']}": step for step in steps}


def planned(home: Path) -> list[Step]:
    """The plan as this process makes it: in a moment, and while a run is at work."""
    store = Store.open(home)
    return plan_steps(load_recipe(str(TINY)), store, Ledger(store))


def believed(home: Path) -> set[str]:
    """Keys of all manifests; every byte that they stand for must be as it was written."""
    store = Store.open(home)
    keys = {name.removesuffix(".json") for name in store.names("manifests")}
    assert {store.check(key)[1] for key in keys} <= {"reuse"}
    return keys


def mlflow_statuses(home: Path) -> set[str]:
    """Statuses of all runs in the home's own MLflow database."""
    database = sqlite3.connect(home / "mlflow" / "mlflow.db")
    with contextlib.closing(database):
        return {status for (status,) in database.execute("select status from runs")}


def digests(home: Path) -> dict[str, dict[str, str]]:
    """Digest by role of every output of every node."""
    ledger = Ledger(Store.open(home))
    return {
        f"{version_label(version)}/{node}": {
            role: ref.digest for role, ref in ledger.history(version, node)[-1].outputs.items()
        }
        for version in ledger.versions()
        for node in ledger.nodes(version)
    }


def forget(home: Path, first_version: int) -> None:
    """Take back all that this version and later ones made, as if they had not begun.

    Objects that an earlier version made, too, stay: equal outputs are one object.
    """
    gone = [h for v in range(first_version, 3) for h in (home / "iterations" / f"v{v}").iterdir()]
    keys = {json.loads(head.read_text())["head"]["key"] for head in gone}
    outputs: dict[bool, set[str]] = {True: set(), False: set()}
    for manifest in (home / "manifests").glob("*.json"):
        refs = json.loads(manifest.read_text())["outputs"].values()
        outputs[manifest.stem in keys] |= {ref["digest"] for ref in refs}
    for digest in outputs[True] - outputs[False]:
        shutil.rmtree(home / "objects" / digest)
        (home / "objects" / f"{digest}.json").unlink()
    for key in keys:
        shutil.rmtree(home / "work" / key)
        (home / "manifests" / f"{key}.json").unlink()
    for head in gone:
        head.unlink()


def wait_until(
    is_so: Callable[[], Any],
    what: str,
    process: subprocess.Popen[bytes] | None = None,
    pause: float = 0.01,
) -> None:
    """Look again and again, as long as the process that should bring it about is there.

    `pause` in seconds is longer where a server has to be asked, which costs it something.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert process is None or process.poll() is None, (
            f"the process ended: no use to await {what}"
        )
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(pause)


def processes_on(home: Path) -> list[int]:
    """Every process on this machine that was started for a home."""
    mark = f"RLHF_HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
