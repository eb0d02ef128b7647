"""A disk that fills up, at one stage after the other: each time one paragraph and exit code 2, and
with more room the same command goes on.

The disk is a small tmpfs; only root may mount one.
"""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from whole_loop_home import (
    TINY,
    assert_one_paragraph,
    believed,
    digests,
    mlflow_statuses,
    planned,
    processes_on,
    run_rlhf,
)

from data_contracts.errors import UserError
from flows.environment import places
from flows.graph import nodes
from flows.node import Node
from flows.progress import Terminal
from flows.recipe import load_recipe
from flows.runner import Walk, run_node

ROOM = 32 * 2**20
SLACKS = (0, 4_096, 20_000, 60_000, 120_000, 250_000, 500_000)
"""Bytes free when a stage begins; one that still fails then gets all the room it wants."""


@dataclass(frozen=True)
class Disk:
    """A file system of its own, in memory."""

    folder: Path

    def resize(self, num_bytes: int) -> None:
        """Give it another size; never less than what is on it."""
        size = max(num_bytes, 4096)  # 0 would be without a limit
        mount("-o", f"remount,size={size}", str(self.folder))

    @property
    def used(self) -> int:
        """Bytes on it."""
        return shutil.disk_usage(self.folder).used


def mount(*arguments: str) -> None:
    out = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if out.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {out.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "rlhf-test", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def problem_of(node: Node, walk: Walk) -> str:
    """What a user would read, or "" when the node runs."""
    try:
        run_node(node, walk)
    except UserError as error:
        return str(error)
    return ""


def failures_of(node: Node, walk: Walk, disk: Disk) -> int:
    """Run a node with more and more room until it succeeds; count how often it did not."""
    for num_failed, slack in enumerate(SLACKS):
        disk.resize(disk.used + slack)
        problem = problem_of(node, walk)
        if not problem:
            return num_failed
        for words in ("No space left on device", str(disk.folder), "Free space"):
            assert words in problem
        assert_nothing_half_done(node, walk)
    disk.resize(ROOM)
    assert not problem_of(node, walk)
    return len(SLACKS)


def assert_nothing_half_done(node: Node, walk: Walk) -> None:
    home = Path(walk.store.home)
    believed(home)
    assert not [*home.glob("work/*/attempt-*/outputs/*"), *home.glob("work/.incoming-*")]
    assert not [p for folder in ("objects", "manifests") for p in home.glob(f"{folder}/**/*.tmp")]
    actions = {str(step.node.id): step.action for step in planned(home)}
    assert actions[str(node.id)] == "run"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_stage_finds_the_disk_full_and_then_room(home: Path, disk: Disk):
    """Each of the nineteen, from a disk without a free byte up; the end is that of a large disk."""
    recipe = load_recipe(str(TINY))
    store = disk.folder / "home"
    walk = Walk(recipe, places(str(store)), terminal=Terminal(Console(quiet=True)))
    walk.tracker.broken = True  # MLflow's database on a full disk: see below
    failures = {str(node.id): failures_of(node, walk, disk) for node in nodes(recipe)}
    assert all(failures.values()), failures
    assert digests(store) == digests(home)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_command_with_its_databases_on_a_full_disk(home: Path, disk: Disk):
    """`rlhf run` with everything on a disk that grows; Prefect's and MLflow's databases fill up
    first, and then the stages have their turn."""
    store = disk.folder / "home"
    disk.resize(64 * 2**10)
    step, num_failed = 512 * 2**10, 0
    while (out := run_rlhf("run", "--recipe", TINY, home=store)).returncode != 0:
        assert_one_paragraph(out, "No space left on device", str(disk.folder), "Free space")
        assert not processes_on(store)
        believed(store)
        num_failed += 1
        disk.resize(disk.used + num_failed * step)
    assert num_failed > 3
    assert digests(store) == digests(home)
    assert run_rlhf("run", "--recipe", TINY, home=store).returncode == 0
    assert mlflow_statuses(store) == {"FINISHED"}


@pytest.mark.slow
def test_ingest_on_a_full_disk(disk: Disk, tmp_path: Path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(20_000)))
    arguments = ("ingest", text, "--role", "documents", "--format", "jsonl_text")
    store = disk.folder / "home"
    out = run_rlhf(*arguments, home=store)
    assert_one_paragraph(out, "No space left on device", str(disk.folder), "Free space")
    assert not list(store.glob("manifests/*"))
    disk.resize(ROOM)
    out = run_rlhf(*arguments, home=store)
    assert out.returncode == 0, out.stderr
    assert len(believed(store)) == 1
