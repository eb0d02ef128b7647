"""How tests call `rlhf` as a user does, and the small recipe that they call it with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = Path(__file__).parent / "tiny.yaml"
Rlhf = Callable[..., subprocess.CompletedProcess[str]]
RLHF = Path(sys.executable).parent / "rlhf"


def run_rlhf(
    *arguments: str | Path, home: Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own, as a user runs it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    return subprocess.run(
        [RLHF, *map(str, arguments)],
        env=environment | {"RLHF_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def plan(home: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """`rlhf plan --json` by node."""
    out = run_rlhf("plan", "--recipe", TINY, "--json", *arguments, home=home)
    assert out.returncode == 0, out.stderr
    steps = json.loads(out.stdout)["steps"]
    return {f"v{step['version']}/{step['node']}": step for step in steps}
