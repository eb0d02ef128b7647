"""One process in a home at a time: a shell is refused, a deployment's run waits for its turn."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from data_contracts.errors import UserError
from data_contracts.store import Store
from flows import occupied as module
from flows.environment import Places, places
from flows.occupied import HomeOccupiedError, claim, occupied, remembered
from flows.recipe import load_recipe


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


@flow
def weekly() -> None:
    """Never run: a context has to name some flow."""


@pytest.fixture
def in_deployment(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowRunContext]:
    """What a worker's process has around a flow's body."""
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.02)
    run = FlowRun(name="rlhf-next", flow_id=uuid4(), deployment_id=uuid4())
    running = FlowRunContext.model_construct(flow=weekly, flow_run=run, parameters={})
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}), running as context:
        yield context


def test_a_shell_is_refused_at_once(store: Store) -> None:
    with store.lock("runs"):
        begun = time.monotonic()
        with pytest.raises(HomeOccupiedError, match="held by process"), occupied(store):
            pass
    assert time.monotonic() - begun < 5


def test_a_flow_of_a_shell_is_refused_at_once(store: Store, in_deployment: FlowRunContext) -> None:
    assert in_deployment.flow_run is not None
    in_deployment.flow_run.deployment_id = None
    with store.lock("runs"), pytest.raises(HomeOccupiedError), occupied(store):
        pass


def test_a_deployments_run_waits_for_a_shell_and_says_so(
    store: Store, in_deployment: FlowRunContext, caplog: pytest.LogCaptureFixture
) -> None:
    is_let_go = threading.Event()
    is_held = threading.Event()

    def shell() -> None:
        with store.lock("runs"):
            is_held.set()
            until = time.monotonic() + 60
            while not any("held by process" in record.message for record in caplog.records):
                if time.monotonic() > until:
                    return
                time.sleep(0.02)
            is_let_go.set()

    thread = threading.Thread(target=shell)
    logging.getLogger("prefect.flow_runs").addHandler(caplog.handler)
    try:
        thread.start()
        is_held.wait()
        with occupied(store):
            assert is_let_go.is_set()
            assert "runs" in store.held_locks()
    finally:
        logging.getLogger("prefect.flow_runs").removeHandler(caplog.handler)
    thread.join()
    (said,) = {record.message for record in caplog.records if "held by" in record.message}
    assert "waiting for it, 24 hours at most" in said
    assert "runs" not in store.held_locks()


def test_its_patience_has_an_end(
    store: Store, in_deployment: FlowRunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.1)
    with (
        store.lock("runs"),
        pytest.raises(HomeOccupiedError, match="held by process"),
        occupied(store),
    ):
        pass


def test_it_does_not_wait_for_a_lock_that_cannot_be_opened(
    store: Store, in_deployment: FlowRunContext
) -> None:
    (store.scratch / "locks").write_text("in the way of the folder")
    with pytest.raises(UserError, match="Cannot open the lock") as refused, occupied(store):
        pass
    assert not isinstance(refused.value, HomeOccupiedError)


def test_a_home_remembers_the_folder_of_its_recipes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rlhf gc`, the watcher and workers read the recipe in other folders."""
    monkeypatch.chdir(tmp_path)
    where = places(str(tmp_path / "home"))
    claim(where, load_recipe("demo"))
    assert remembered_folder(where) == tmp_path
    claim(where, load_recipe("demo", data_dir="data"))
    assert remembered_folder(where) == tmp_path / "data"


def test_a_worker_leaves_the_remembered_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_deployment: FlowRunContext
) -> None:
    where = places(str(tmp_path / "home"))
    (tmp_path / "of_one_run").mkdir()
    monkeypatch.chdir(tmp_path / "of_one_run")
    claim(where, load_recipe("demo"))
    assert remembered_folder(where) is None
    claim(where, load_recipe("demo", data_dir=str(tmp_path)))
    claim(where, load_recipe("demo"))
    assert remembered_folder(where) == tmp_path


def remembered_folder(where: Places) -> Path | None:
    recipe = remembered(where)
    assert recipe is not None
    return recipe.data_dir
