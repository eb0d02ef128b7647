"""`rlhf deploy` and a worker as deploy/README.md has them: on a server with a secret."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from standing_servers import BIN, Server, prefect_server
from whole_loop_home import PATIENCE_SECONDS, TINY, digests, environment_of, processes_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SECRET = "admin:secret1"


class Operator:
    """A shell with the variables that deploy/README.md names."""

    def __init__(self, server: Server, home: Path) -> None:
        self.environment = environment_of(
            home,
            PATH=f"{BIN}:{os.environ['PATH']}",
            PREFECT_API_URL=f"{server.url}/api",
            PREFECT_API_AUTH_STRING=SECRET,
            PREFECT_HOME=str(home.parent / "client"),
        )

    def run(self, *command: str) -> None:
        """Run one command to its end."""
        out = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert out.returncode == 0, out.stdout + out.stderr

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A worker of the pool, ended as systemd ends one."""
        process = subprocess.Popen(
            ["prefect", "worker", "start", "--pool", "rlhf", "--type", "process"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)


def test_registered_scheduled_and_run_by_a_worker(home: Path, tmp_path: Path):
    copy = Path(shutil.copytree(home, tmp_path / "home"))
    with prefect_server(tmp_path / "prefect", SECRET) as server:
        operator = Operator(server, copy)
        operator.run("rlhf", "deploy", "--recipe", str(TINY))
        deployment = server.get("/api/deployments/name/rlhf-iteration/weekly")
        given = {"recipe": str(TINY), "home": str(copy), "version": None}
        assert deployment["parameters"] == given
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        (schedule,) = deployment["schedules"]
        assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 3 * * 1", True)
        with operator.worker():
            operator.run(
                *("prefect", "deployment", "run", "rlhf-iteration/weekly"),
                *("--param", "version=2", "--watch"),
            )
        assert not processes_on(copy)
    assert digests(copy) == digests(home)
