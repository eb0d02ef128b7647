"""A home that is not this user's, or on a disk that does not work: one paragraph that names it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flows.cli_options import paragraphs

WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Root is bound by modes, too."""
PROGRAM = """
import json, sys
from typer.testing import CliRunner
from flows.cli import app

homes, commands = map(json.loads, sys.argv[1:])
told = []
for home in homes:
    for command in commands:
        result = CliRunner().invoke(app, [*command, "--home", home])
        told.append((home, command, result.exit_code, result.stderr))
print(json.dumps(told))
"""
LOOKS = (
    ("status",),
    ("plan",),
    ("plan", "--recipe", "demo"),
    ("models",),
    ("history",),
    ("report",),
    ("stop",),
    ("gc", "--dry-run"),
    ("fsck",),
)


def failing(error: OSError, home: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that meets the error."""

    @paragraphs
    def command(home: str) -> None:
        raise error

    with pytest.raises(typer.Exit) as left:
        command(home=str(home))
    assert left.value.exit_code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "Permission denied. Give yourself the permission"),
        (errno.EPERM, "Operation not permitted. Give yourself the permission"),
        (errno.EROFS, "Read-only file system. Choose a place that is not mounted read-only"),
        (errno.EIO, "Input/output error. The disk reports a fault"),
    ],
)
def test_the_file_is_named(
    number: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    error = OSError(number, os.strerror(number), "/srv/rlhf/heads")
    assert f"Cannot use /srv/rlhf/heads: {words}" in failing(error, tmp_path, capsys)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_without_a_file_the_home_is(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    error = OSError(number, os.strerror(number))
    assert f"Cannot use {tmp_path}: " in failing(error, tmp_path, capsys)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EPERM, "Operation not permitted"),  # of a signal, say
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/srv/rlhf/heads"),
    ],
)
def test_any_other_error_keeps_its_traceback(error: OSError, tmp_path: Path):
    @paragraphs
    def command(home: str) -> None:
        raise error

    with pytest.raises(type(error)):
        command(home=str(tmp_path))


def test_looking_at_a_home_that_is_closed(tmp_path: Path):
    """By itself, or by the folder that it is in."""
    root = os.geteuid() == 0
    if root and shutil.which(WITHOUT_PRIVILEGES[0]) is None:
        pytest.skip("modes do not bind root, and there is no setpriv here")
    homes = [tmp_path / "closed", tmp_path / "team" / "home"]
    closed = [tmp_path / "closed", tmp_path / "team"]
    for home in homes:
        home.mkdir(parents=True)
    for folder in closed:
        folder.chmod(0)
    arguments = (json.dumps([str(home) for home in homes]), json.dumps(LOOKS))
    out = subprocess.run(
        [*(WITHOUT_PRIVILEGES if root else ()), sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    for folder in closed:
        folder.chmod(0o700)
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert len(told) == len(homes) * len(LOOKS)
    for home, command, status, paragraph in told:
        assert status == 2, (command, paragraph)
        assert home in paragraph, command
        assert "Permission denied. Give yourself the permission" in paragraph, command
