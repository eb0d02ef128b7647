"""What the `rlhf` commands share: their options, the recipe and the home they mean, and errors."""

import errno
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from data_contracts.durable import disk_error, disk_full, is_disk_full
from data_contracts.errors import UserError
from flows.environment import Places, places
from stages.runtime.stopping import Stopped

if TYPE_CHECKING:
    from data_contracts.ledger import Ledger
    from data_contracts.store import Store
    from flows.recipe import Recipe

USER_ERROR = 2
INTERRUPTED = 130
_DISK_FAULTS = (errno.EROFS, errno.EIO)
_REFUSALS = (errno.EACCES, errno.EPERM)
_FILE_WIDTH = 140
"""Columns of a table that goes to a file or a pipe."""

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A recipe's name (demo, real, dialogue, 7b, 13b, 34b, 70b) or a YAML or JSON file. "
        "Without it: the recipe of the home's newest run.",
    ),
]
ProductOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Make sure that the home is this recipe's: what is shown is what the home holds.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. ppo.kl_beta=0.02."),
]
HomeOption = Annotated[
    str | None,
    typer.Option("--home", help="Folder or URL of the store. Else $RLHF_HOME, else ./rlhf_home."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder in which relative source paths stand.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")]
VersionsOption = Annotated[
    int | None, typer.Option("--versions", help="Iterations to run: RLHF-V1 to Vn.")
]
ProcessesOption = Annotated[
    int | None, typer.Option("--num-processes", help="Ranks of every model stage.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Plan for so many GPUs, one rank each.")
]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", help="a100-40gb, a100-80gb, h100-80gb or h200.")
]
MfuOption = Annotated[
    float | None,
    typer.Option("--mfu", min=0.01, max=1, help="Share of a GPU's peak that training reaches."),
]
WattsOption = Annotated[
    float | None, typer.Option("--watts", min=1, help="Power of a GPU at work.")
]
PueOption = Annotated[
    float | None, typer.Option("--pue", help="Energy of the data centre over that of its GPUs.")
]
CarbonOption = Annotated[
    float | None, typer.Option("--kgco2-per-kwh", help="What a kWh of the grid emits.")
]
AssumeOption = Annotated[
    list[str] | None,
    typer.Option("--assume", metavar="KEY=VALUE", help="The data, e.g. num_comparisons=100000."),
]
ForceNodesOption = Annotated[
    list[str] | None,
    typer.Option("--force", metavar="NODE", help="Make it again, e.g. ppo or v2/ppo."),
]


def paragraphs(command: Callable[..., None]) -> Callable[..., None]:
    """What a user can mend becomes one paragraph and exit code 2; an end that was wanted, 130."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Stopped as error:
            Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            Console(stderr=True).print("Interrupted; the same command goes on from here.")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            explained = _explained(error, places(kwargs.get("home")).local)
            if explained is None:
                raise
            _fail(str(explained))

    return guarded


def _explained(error: OSError, home: Path) -> UserError | None:
    """The paragraph for a disk that is full, read-only, broken, or not this user's; None for any
    other error, and for a refusal that names no file: a port or a process may be behind it."""
    if is_disk_full(error):
        return disk_full("write below", home)
    named = Path(error.filename) if isinstance(error.filename, str) else None
    if error.errno in _DISK_FAULTS or (error.errno in _REFUSALS and named):
        return disk_error("use", named or home, error)
    return None


def _fail(paragraph: str) -> None:
    Console(stderr=True, highlight=False).print(paragraph, markup=False, soft_wrap=True)
    raise typer.Exit(USER_ERROR)


def chosen_recipe(
    source: str | None,
    settings: list[str] | None,
    where: Places,
    data: Path | None,
    seed: int | None,
    versions: int | None,
    num_processes: int | None,
) -> "Recipe":
    """The recipe that --recipe names, or the home's, with the other options on top."""
    from flows.recipe import load_recipe, recipe_names

    if source is None:
        if not where.recipe.is_file():
            raise UserError(
                f"No recipe is named, and nothing has run in {where.home} that could tell",
                f"Add --recipe with one of {', '.join(recipe_names())}, or a file",
            )
        source = str(where.recipe)
    return load_recipe(
        source,
        settings or [],
        data_dir=str(data.absolute()) if data else None,
        seed=seed,
        num_versions=versions,
        launch__num_processes=num_processes,
    )


def wide_console() -> Console:
    """Tables keep their columns whole where no terminal limits them."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def exists(where: Places) -> bool:
    """Whether there is a home to look at; looking makes none."""
    return "://" in where.home or where.local.is_dir()


def existing_home(where: Places) -> Places:
    """The same places, for commands that begin no home. Raises UserError where there is none."""
    if not exists(where):
        raise UserError(f"There is no home at {where.home}", "Name one with --home")
    return where


def opened(where: Places) -> "tuple[Store, Ledger]":
    """The home's store and ledger; a local home is made when it is not there."""
    from data_contracts.ledger import Ledger
    from data_contracts.store import Store

    store = Store.open(where.home)
    return store, Ledger(store)


def check_product(recipe: str | None, where: Places) -> None:
    """Raise UserError when --recipe is for another product than the home holds."""
    from flows.occupied import refuse_other_product

    if recipe is not None:
        refuse_other_product(where, chosen_recipe(recipe, None, where, None, None, None, None))


def print_json(value: Any) -> None:
    """Write a value to standard output for other programs."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write(os.linesep)
