"""The Prefect flow that looks whether labels are in, and lets their iteration go on.

Iterations are split at the wait: the first phase publishes comparisons and completes, so nobody
sits in a worker for a week. The second is the same deployment again, and reuses the first.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.states import Completed, Failed

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.environment import Places, places
from flows.iteration import as_recipe
from flows.label_weeks import (
    annotation_database,
    deliver_labels,
    delivery_file,
    out_of_reach,
    progress_of,
)
from flows.numbering import is_complete
from flows.occupied import HomeOccupiedError
from flows.recipe import Recipe

MAX_ATTEMPTS = 3
"""Second phases of one iteration that may fail before a person has to look; one that found the home
occupied for too long has not been tried."""
_ITERATION = "rlhf-iteration/weekly"


@flow(name="watch-annotations", flow_run_name="watch-annotations", persist_result=False)
def watch_annotations(recipe: str | dict[str, Any], home: str) -> State[None]:
    """Deliver labels that are in and start what waits for them.

    They are in when all are given, or when the deadline has passed and the recipe's quorum is met.
    """
    typed, where = as_recipe(recipe), places(home)
    ledger = Ledger(Store.open(where.home))
    said = [
        _look(typed, where, version)
        for version in ledger.versions()
        if ledger.head(version, "sample_pairs") and not is_complete(ledger, version)
    ]
    failed = [text for is_well, text in said if not is_well]
    if failed:
        return Failed(message="; ".join(failed))
    return Completed(message="; ".join(text for _, text in said) or "Nothing waits for labels")


def _look(recipe: Recipe, where: Places, version: int) -> tuple[bool, str]:
    """Whether all is well with a version, and what is to be said of it."""
    file = delivery_file(recipe, version)
    if file is None:
        return True, f"v{version} waits for no labels"
    if not file.is_file():
        if reason := out_of_reach(recipe, file):
            return False, f"The labels of v{version} cannot be delivered: {reason}"
        waiting = _deliver(recipe, where, version, file)
        if waiting:
            return True, waiting
    run = _second_phase(version)
    if run is None:
        return False, (
            f"{MAX_ATTEMPTS} runs with the labels of v{version} have ended and it is not complete: "
            f"mend the cause, then run {_ITERATION} with version {version}"
        )
    return True, f"v{version} goes on in {run.name}"


def _deliver(recipe: Recipe, where: Places, version: int, file: Path) -> str:
    """Write the delivery when it is due; else what is still waited for."""
    found = progress_of(where, version)
    if found is None:
        return f"v{version} has no batch yet"
    if not found.is_ready(recipe.labelling.quorum, datetime.now(UTC)):
        return f"v{version} has {found.num_done} of {found.num_wanted} labels"
    database = annotation_database(where)
    try:
        deliver_labels(database, version, file, recipe.collect_preferences.test_fraction)
    finally:
        database.close()
    return ""


def _second_phase(version: int) -> FlowRun | None:
    """The run that goes on with a version: the one there is, or a new one; None after too many."""
    number = num_failed = 0
    while num_failed < MAX_ATTEMPTS:
        number += 1
        # the same key gives the same run, so that neither two watchers nor a watcher that died
        # start it twice
        run = run_deployment(
            _ITERATION,
            parameters={"version": version},
            timeout=0,
            idempotency_key=f"v{version}:labelled:{number}",
            as_subflow=False,
        )
        assert isinstance(run, FlowRun)
        if run.state is None or not run.state.is_final():
            return run
        num_failed += not _found_home_occupied(run.state)
    return None


def _found_home_occupied(state: State[Any]) -> bool:
    """Whether a run ended because another process was at work in its home."""
    return state.is_failed() and HomeOccupiedError.__name__ in (state.message or "")
