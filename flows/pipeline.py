"""The Prefect flow of a whole run: the base, then every iteration of the recipe."""

from typing import Any

from prefect import flow

from data_contracts.errors import UserError
from data_contracts.store import Store
from flows.environment import places
from flows.iteration import AWAITING_LABELS, as_recipe, rlhf_iteration
from flows.node import BASE
from flows.occupied import claim, occupied


@flow(name="rlhf-run", flow_run_name="rlhf-run", persist_result=False)
def rlhf_run(recipe: str | dict[str, Any], home: str, force: list[str] | None = None) -> None:
    """From raw text to the recipe's newest version. Finished stages are reused.

    Each iteration is a run of its own in Prefect and gets the outputs that this run has made so
    far, pinned, so that another recipe in the same home cannot come between.
    """
    typed = as_recipe(recipe)
    values = typed.model_dump(mode="json")
    pinned: Any = {}
    base = rlhf_iteration.with_options(flow_run_name="rlhf-base")
    with occupied(Store.open(home)):
        claim(places(home), typed)
        for version in range(BASE, typed.num_versions + 1):
            iteration = base if version == BASE else rlhf_iteration
            state = iteration(version, values, home, force, pinned, return_state=True)
            if state.name == AWAITING_LABELS:
                raise UserError(str(state.message), "Then run the same command again")
            pinned = state.result()
