"""The programs of deploy/compose.yaml from Debian's packages and PyPI's, without Docker.

Every command, variable, health check and order is the compose file's; only addresses and folders
are those of this machine, where all services have one address and so ports of their own.
"""

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TINY = ROOT / "tests" / "whole_loop" / "tiny.yaml"
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 900.0
SECRETS = {"POSTGRES_PASSWORD": "changeMe1", "PREFECT_AUTH": "admin:changeMe1", "WEBHOOK": ""}
PEOPLE = "lea:openSesame1"


class Team:
    """One compose project whose services are processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {n: _free_port() for n in ("postgres", "prefect", "mlflow", "proxy", "labels")}
        text = (DEPLOY / "compose.yaml").read_text()
        for name, value in (SECRETS | {"DATA": str(folder), "HTPASSWD": "htpasswd"}).items():
            text = re.sub(rf"\$\{{{name}(:\?[^}}]*|-)?\}}", value, text)
        assert "${" not in text
        self.services: dict[str, Any] = yaml.safe_load(text)["services"]

    def local(self, word: str) -> str:
        """A word of the compose file with what it means on this machine."""
        at = self.ports
        for there, here in {
            "postgres:5432": f"127.0.0.1:{at['postgres']}",
            "prefect:4200": f"127.0.0.1:{at['prefect']}",
            "mlflow:5000": f"127.0.0.1:{at['mlflow']}",
            "/var/lib/rlhf": str(self.folder / "data"),
            "/etc/rlhf/recipe.yaml": str(TINY),
            "/tmp/prefect-page": str(self.folder / "page"),
        }.items():
            word = word.replace(there, here)
        return word

    def command(self, name: str, words: list[str]) -> list[str]:
        """A command of a service: its own port where it listens on all addresses."""
        own = {"prefect": "prefect", "mlflow": "mlflow", "annotation": "labels"}.get(name)
        found = [self.local(word) for word in words]
        if own:
            official = {"prefect": "4200", "mlflow": "5000", "annotation": "8400"}[name]
            found = [
                re.sub(rf"(?<!\d){official}(?!\d)", str(self.ports[own]), w).replace(
                    "0.0.0.0", "127.0.0.1"
                )
                for w in found
            ]
        return [str(BIN / found[0]), *found[1:]]

    def environment(self, name: str) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        said = self.services[name].get("environment", {})
        # compose fills variables in after it has read the YAML: an empty one is text, not null
        given = {k: self.local(v or "") for k, v in said.items()}
        home = self.folder / f"home-of-{name}"  # a container has a disk of its own
        path = f"{BIN}:{os.environ['PATH']}"
        return own | {"PREFECT_HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"} | given

    @contextlib.contextmanager
    def service(self, name: str) -> Iterator[None]:
        """A service that runs, healthy as its own check says."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(name, self.services[name]["command"]),
                env=self.environment(name),
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self.wait_until_healthy(name, process, log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(120)

    def wait_until_healthy(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        check = self.services[name].get("healthcheck")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while check and self.run(name, check["test"][1:]).returncode:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(1)

    def run(self, name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as a service would."""
        return subprocess.run(
            self.command(name, words),
            env=self.environment(name),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """All services of the file, started in the order of their dependencies."""
    team = Team(tmp_path_factory.mktemp("team"))
    (team.folder / "data").mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(postgres(team))
        for name in ("prefect", "mlflow", "annotation"):
            stack.enter_context(team.service(name))
        stack.enter_context(proxy(team))
        out = team.run("deployments", team.services["deployments"]["command"])
        assert out.returncode == 0, out.stdout + out.stderr
        for name in ("worker", "watcher"):
            stack.enter_context(team.service(name))
        rest = {"postgres", "prefect", "mlflow", "annotation", "proxy", "deployments"}
        assert team.services.keys() == rest | {"worker", "watcher"}
        yield team


@contextlib.contextmanager
def postgres(team: Team) -> Iterator[None]:
    """Postgres with the user, password and databases of the compose file."""
    programs = {name: shutil.which(name) for name in ("initdb", "postgres", "psql")}
    if None in programs.values() or os.geteuid() != 0:
        pytest.skip("no Postgres server is installed, or we may not start it as another user")
    folder = Path("/tmp") / f"team-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o700)
    password = folder / "password"
    password.write_text(SECRETS["POSTGRES_PASSWORD"])
    for path in (folder, password):
        shutil.chown(path, "postgres")
    given = team.services["postgres"]["environment"]
    as_user: dict[str, Any] = {"user": "postgres", "cwd": folder, "check": True}
    make = [programs["initdb"], "-D", "data", "-U", given["POSTGRES_USER"], "--no-sync"]
    port = str(team.ports["postgres"])
    options = ["-D", "data", "-p", port, "-c", f"unix_socket_directories={folder}"]
    try:
        subprocess.run(
            [*make, "-A", "scram-sha-256", "--pwfile", password], capture_output=True, **as_user
        )
        with (team.folder / "postgres.log").open("ab") as log:
            server = subprocess.Popen(
                [str(programs["postgres"]), *options],
                user="postgres",
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            _make_databases(team, given)
            yield
        finally:
            server.terminate()
            server.wait(120)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_databases(team: Team, given: dict[str, str]) -> None:
    url = f"postgresql://rlhf:{given['POSTGRES_PASSWORD']}@127.0.0.1:{team.ports['postgres']}"
    create = ["psql", f"{url}/postgres", "-c", f"CREATE DATABASE {given['POSTGRES_DB']}"]
    deadline = time.monotonic() + 60
    while subprocess.run(create, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    file = ["psql", f"{url}/{given['POSTGRES_DB']}", "-v", "ON_ERROR_STOP=1"]
    subprocess.run([*file, "-f", DEPLOY / "databases.sql"], check=True, capture_output=True)


@contextlib.contextmanager
def proxy(team: Team) -> Iterator[None]:
    """nginx with deploy/nginx.conf."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    openssl = shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("nginx or openssl is not installed")
    name, _, password = PEOPLE.partition(":")
    hashed = subprocess.run(
        [openssl, "passwd", "-apr1", password], capture_output=True, text=True, check=True
    ).stdout.strip()
    (team.folder / "htpasswd").write_text(f"{name}:{hashed}\n")
    (team.folder / "htpasswd").chmod(0o644)
    server = team.local((DEPLOY / "nginx.conf").read_text())
    server = server.replace("listen 5000", f"listen 127.0.0.1:{team.ports['proxy']}")
    server = server.replace("/etc/nginx/htpasswd", str(team.folder / "htpasswd"))
    places = "".join(
        f"{kind}_temp_path {team.folder}/nginx-{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = team.folder / "nginx.conf"
    config.write_text(
        f"user root;\nerror_log {team.folder}/nginx.log;\npid {team.folder}/nginx.pid;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}{server}}}\n"
    )
    process = subprocess.Popen([nginx, "-c", config, "-g", "daemon off;"])
    try:
        deadline = time.monotonic() + 60
        while _status(team, "proxy", "/health") != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _status(team: Team, name: str, path: str, secret: str = "") -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{team.ports[name]}{path}")
    if secret:
        basic = base64.b64encode(secret.encode()).decode()
        request.add_header("Authorization", f"Basic {basic}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_gets_in_without_a_password(team: Team):
    pages = {"proxy": "/", "prefect": "/api/work_pools/rlhf", "labels": "/tasks/helpfulness"}
    for name, path in pages.items():
        if name == "labels":
            assert _status(team, name, "/healthz") == 200
        else:
            assert _status(team, name, path) == 401
    assert _status(team, "proxy", "/", "lea:wrong") == 401
    assert _status(team, "proxy", "/", PEOPLE) == 200
    assert _status(team, "prefect", "/api/work_pools/rlhf", SECRETS["PREFECT_AUTH"]) == 200


def test_a_client_of_mlflow_comes_through_the_proxy(team: Team):
    name, _, password = PEOPLE.partition(":")
    code = "import mlflow; print([e.name for e in mlflow.MlflowClient().search_experiments()])"
    at = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{team.ports['proxy']}",
        "MLFLOW_TRACKING_USERNAME": name,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=team.environment("worker") | at,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Default" in out.stdout, out.stderr[-2000:]


def test_the_worker_runs_the_base_on_postgres(team: Team):
    """What an operator types; the recipe is a small one, and has the sandbox's world."""
    run = ["prefect", "deployment", "run", "rlhf-iteration/weekly", "--param", "version=0"]
    out = team.run("worker", [*run, "--watch"])
    assert out.returncode == 0, out.stdout + out.stderr
    assert (team.folder / "data" / "home" / "iterations" / "base" / "sft.json").is_file()
    assert not list(team.folder.rglob("*.db")), "no database of its own"
    url = f"postgresql://rlhf:{SECRETS['POSTGRES_PASSWORD']}@127.0.0.1:{team.ports['postgres']}"
    names = subprocess.run(
        ["psql", f"{url}/mlflow", "-At", "-c", "select name from runs order by start_time"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"Base", "pretrain", "sft"} <= set(names)
