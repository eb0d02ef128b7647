"""Training needs no compiler: none is called, and none has to be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("path", ["as it is", pytest.param("empty", marks=pytest.mark.slow)])
def test_nothing_is_compiled_and_no_command_is_run(tmp_path: Path, path: str) -> None:
    extensions = tmp_path / "extensions"
    environment = os.environ | {
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    if path == "empty":
        environment["PATH"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "runtime_toys.compilers"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert not extensions.exists()
