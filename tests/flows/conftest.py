"""A home of its own for every test, fake stage bodies, and a walk without Prefect."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_stages
import pytest
from rich.console import Console

from flows.environment import places
from flows.progress import Terminal
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands set what Prefect and MLflow read; nothing of that outlives a test."""
    before = dict(os.environ)
    for name in ("RLHF_HOME", "PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage bodies that take no time."""
    fake_stages.install(monkeypatch.setitem)


@pytest.fixture
def recipe() -> Recipe:
    """The demo, cut short."""
    return load_recipe("demo", fake_stages.SHORT)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of `new_walk`'s walks."""
    return tmp_path / "home"


@pytest.fixture
def new_walk(tmp_path: Path, fakes: None) -> Callable[..., Walk]:
    """Walks over one home that tell MLflow nothing."""

    def make(recipe: Recipe, tracked: bool = False) -> Walk:
        walk = Walk(recipe, places(str(tmp_path / "home")), terminal=Terminal(Console(quiet=True)))
        walk.tracker.broken = not tracked
        return walk

    return make
