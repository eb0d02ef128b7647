"""The watcher's decisions: which run goes on with the labels, and where it cannot deliver them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Scheduled, exception_to_failed_state

from data_contracts.errors import UserError
from flows import watch
from flows.environment import places
from flows.occupied import HomeOccupiedError
from flows.recipe import load_recipe

REFUSED = HomeOccupiedError("The lock on runs of /home is held by process 7", "Wait until it ends")
WRONG = UserError("Row 17 has no field text", "Add it")


def failed(error: Exception) -> State[Any]:
    """As Prefect's engine ends a run whose flow raises."""
    message = "Flow run encountered an exception:"
    return asyncio.run(exception_to_failed_state(error, message=message))


@pytest.fixture
def ended_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the runs of v1 with these numbers have ended so; the next one is scheduled."""

    def end(*errors: Exception) -> None:
        states = {f"v1:labelled:{n}": failed(error) for n, error in enumerate(errors, 1)}

        def run_deployment(name: str, *, idempotency_key: str, **_: Any) -> FlowRun:
            state = states.get(idempotency_key) or Scheduled()
            return FlowRun(name=idempotency_key, flow_id=uuid4(), state=state)

        monkeypatch.setattr(watch, "run_deployment", run_deployment)

    return end


def test_runs_that_found_the_home_occupied_do_not_count(ended_with: Callable[..., None]) -> None:
    ended_with(WRONG, *[REFUSED] * 4, WRONG)
    run = watch._second_phase(1)
    assert run is not None
    assert run.name == "v1:labelled:7"


def test_after_three_that_failed_a_person_has_to_look(ended_with: Callable[..., None]) -> None:
    ended_with(WRONG, REFUSED, WRONG, WRONG)
    assert watch._second_phase(1) is None


def test_labels_are_not_delivered_where_the_source_files_are_not_mounted(tmp_path: Path) -> None:
    """In containers the watcher has no /data: a file there would be seen by nobody."""
    home, data = tmp_path / "home", tmp_path / "data"
    settings = ["collect_preferences.method=annotations"]
    settings.append("collect_preferences.deliveries=home/annotation/deliveries")
    recipe = load_recipe("demo", settings, data_dir=str(data))
    is_well, said = watch._look(recipe, places(str(home)), 1)
    assert not is_well
    assert str(data / "home/annotation/deliveries/v1.parquet") in said
    assert "with its whole path, in collect_preferences.deliveries" in said
    assert not data.exists()
    data.mkdir()
    assert watch._look(recipe, places(str(home)), 1) == (True, "v1 has no batch yet")
