"""What two ranks find out: launched once for all the tests that judge it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runtime_toys.models import build, train

from stages.runtime.checkpoints import Checkpointer
from stages.runtime.distributed import process_group


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist, one worker launches the ranks."""
    for item in items:
        if "findings" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("findings"))


@pytest.fixture(scope="session")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    save_from_one_rank(folder / "one_rank")
    command = "torch.distributed.run --standalone --nproc_per_node 2 -m runtime_toys.ranks"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "findings.json").read_text()) | {"folder": folder}


def save_from_one_rank(folder: Path) -> None:
    rank = process_group()
    engine = build(rank, 2)
    train(engine, rank, range(3), [12])
    with Checkpointer(folder, rank) as checkpointer:
        checkpointer.save(3, {"policy": engine})
