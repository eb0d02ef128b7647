"""What `rlhf up` refuses before it starts anything, and what its keepers leave behind: nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.environment import places
from flows.standing import state
from flows.standing.addresses import Addresses
from flows.standing.programs import Program
from flows.standing.up import Servers


def rlhf(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", **environment})


def paragraph(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_taken_port_is_named_with_its_option(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = paragraph(rlhf("up", "--recipe", "demo", "--mlflow-port", port))
    assert f"Port {port}" in message
    assert "--mlflow-port" in message
    assert not (tmp_path / "rlhf_home").exists()


def test_two_servers_cannot_have_one_port():
    message = paragraph(rlhf("up", "--recipe", "demo", "--annotation-port", "4200"))
    assert "--prefect-port and --annotation-port are both 4200" in message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_an_open_door_is_refused(host: str):
    message = paragraph(rlhf("up", "--recipe", "demo", "--host", host))
    assert "PREFECT_SERVER_API_AUTH_STRING" in message


@pytest.mark.parametrize("secret", ["secret", ":secret", "admin:"])
def test_a_secret_has_a_name_and_a_password(secret: str):
    result = rlhf("up", "--recipe", "demo", PREFECT_SERVER_API_AUTH_STRING=secret)
    assert "name:password" in paragraph(result)


def test_a_schedule_is_five_fields_in_a_time_zone():
    message = paragraph(rlhf("up", "--recipe", "demo", "--cron", "mondays"))
    assert "--cron 'mondays'" in message
    message = paragraph(rlhf("up", "--recipe", "demo", "--timezone", "Mars/Olympus"))
    assert "no time zone 'Mars/Olympus'" in message


def test_deploying_needs_a_server():
    assert "PREFECT_API_URL" in paragraph(rlhf("deploy", "--recipe", "demo"))


def test_a_recipe_is_asked_for():
    assert "Add --recipe" in paragraph(rlhf("up"))


@pytest.mark.parametrize(
    ("secret", "ends"), [("", ""), ("admin:secret1", " PREFECT_API_AUTH_STRING=NAME:PASSWORD")]
)
def test_the_shells_variables_are_printed(
    secret: str, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the secret itself is not."""
    from flows.standing.up import Servers

    def started(self: Servers, announce: Callable[[], None]) -> None:
        announce()

    monkeypatch.setattr(Servers, "run", started)
    monkeypatch.setattr(Addresses, "check", lambda self, secret: None)
    out = rlhf(
        *("up", "--recipe", "demo", "--home", str(tmp_path / "home"), "--prefect-port", "4321"),
        PREFECT_SERVER_API_AUTH_STRING=secret,
    )
    assert out.exit_code == 0, out.output
    assert f"export PREFECT_API_URL=http://127.0.0.1:4321/api{ends}\n" in out.stdout
    assert "secret1" not in out.output


def test_a_second_one_is_refused_with_the_pid_of_the_first(tmp_path: Path):
    home = tmp_path / "home"
    with state.standing(places(str(home)), Addresses()):
        message = paragraph(rlhf("up", "--recipe", "demo", "--home", str(home)))
    assert f"process {os.getpid()}" in message
    assert "rlhf down" in message


def test_down_where_nothing_is_up(tmp_path: Path):
    home = tmp_path / "home"
    assert "No servers" in rlhf("down", "--home", str(home)).stdout
    assert not home.exists()


def test_a_file_left_by_a_kill_is_not_believed(tmp_path: Path):
    where = places(str(tmp_path))
    with state.standing(where, Addresses()):
        left = (tmp_path / "servers.json").read_bytes()
        found = state.read(where)
        assert found is not None
        assert found.pid == os.getpid()
    (tmp_path / "servers.json").write_bytes(left)
    assert state.read(where) is None


def test_who_may_only_read_a_home_sees_that_its_servers_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where = places(str(tmp_path))
    with state.standing(where, Addresses()):
        left = (tmp_path / "servers.json").read_bytes()
    (tmp_path / "servers.json").write_bytes(left)
    opened = Path.open

    def read_only(file: Path, mode: str = "r", **options: str) -> object:
        if mode != "r":
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, mode, **options)  # pyright: ignore

    monkeypatch.setattr(Path, "open", read_only)
    assert state.read(where) is None
    assert "No servers" in rlhf("down", "--home", str(tmp_path)).stdout


def test_servers_of_another_user_are_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with state.standing(places(str(tmp_path)), Addresses()):
        monkeypatch.setattr("flows.standing.up.os.kill", refused)
        message = paragraph(rlhf("down", "--home", str(tmp_path)))
    assert f"process {os.getpid()} of another user" in message


def test_a_home_of_a_user_that_there_is_not():
    message = paragraph(rlhf("fsck", "--home", "~nobody-of-this-name/home"))
    assert "~nobody-of-this-name/home begins with no user of this machine" in message


# A program that ignores TERM and starts another one that leaves its session.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = ["-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"]
subprocess.Popen([sys.executable, *sleep, sys.argv[1]], start_new_session=True)
print("ready", flush=True)
time.sleep(99)
"""


def stubborn(mark: str) -> list[str]:
    """Command lines of living processes that name the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in command:
            found.append(folder.name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("how", ["asked", "parent killed", "program killed"])
def test_a_keeper_leaves_nothing_behind(how: str, tmp_path: Path):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    starter = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'flows.standing.keeper', str(os.getpid()), '0.5', "
        f"'stubborn', '{mark}'])\n"
        "time.sleep(99)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter], env=environment, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        keeper, program = (int(pid) for pid in sorted(stubborn(mark), key=int)[:2])
        if how == "asked":
            os.kill(keeper, signal.SIGTERM)
        elif how == "parent killed":
            parent.kill()
        else:
            os.kill(program, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while stubborn(mark):
            assert time.monotonic() < deadline, stubborn(mark)
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.communicate()


def test_a_paused_pool_is_no_reason_to_end_the_servers(monkeypatch: pytest.MonkeyPatch):
    servers = Servers.__new__(Servers)
    program = Program("worker", "prefect", (), "http://here/pool", pool="rlhf")
    for status, expected in (("READY", True), ("PAUSED", True), ("NOT_READY", False)):
        content = json.dumps({"status": status}).encode()
        monkeypatch.setattr(servers, "_get", lambda _, content=content: content)
        assert servers._is_at_work(program) == expected


def test_under_nohup_a_hang_up_stays_ignored():
    servers = Servers.__new__(Servers)
    servers._asked = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with servers._signals_kept():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert servers._asked == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
