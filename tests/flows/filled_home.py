"""A home that fake stages have filled, and the command line on it."""

from collections.abc import Callable
from pathlib import Path

from fake_stages import walk_all
from typer.testing import CliRunner, Result

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.cli import app
from flows.occupied import claim
from flows.planner import plan
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk

NewWalk = Callable[..., Walk]
SMALL = ["num_versions=1"]
NODE = "v1/reward_model-safety"
"""What `two_results` makes twice."""


def rlhf(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home)], env={"COLUMNS": "300"})


def run(new_walk: NewWalk, *settings: str) -> Recipe:
    """Run the demo's first version with these settings, which the home then remembers."""
    recipe = load_recipe("demo", [*SMALL, *settings])
    walk = new_walk(recipe)
    claim(walk.where, recipe)
    walk_all(walk)
    return recipe


def head(home: Path, node: str, version: int = 1) -> tuple[str, str]:
    """Key and digest of the model of a head."""
    entry = Ledger(Store.open(home)).history(version, node)[-1]
    return entry.key, entry.outputs["model"].digest


def to_run(recipe: Recipe, home: Path) -> dict[str, str]:
    store = Store.open(home)
    steps = plan(recipe, store, Ledger(store))
    return {str(s.node.id): s.reason for s in steps if s.action == "run"}


def reason_of(recipe: Recipe, home: Path, node: str) -> str:
    store = Store.open(home)
    return next(s.reason for s in plan(recipe, store, Ledger(store)) if str(s.node.id) == node)


def two_results(new_walk: NewWalk, home: Path) -> tuple[Recipe, tuple[str, str], tuple[str, str]]:
    """The safety reward model with the recipe's epochs and then with seven: both heads, the newer
    last."""
    run(new_walk)
    first = head(home, "reward_model-safety")
    recipe = run(new_walk, "safety_rm.num_epochs=7")
    return recipe, first, head(home, "reward_model-safety")
