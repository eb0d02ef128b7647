"""`rlhf up` and `rlhf down`: the servers and workers of a home."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli_options import (
    DataOption,
    HomeOption,
    RecipeOption,
    SetOption,
    chosen_recipe,
    paragraphs,
)
from flows.environment import Places, places, prepare
from flows.standing.addresses import LOOPBACK, Addresses, secret_of

_DOWN_SECONDS = 180.0
"""A stage may take half a minute to save, and each program has its own grace."""


@paragraphs
def up(
    recipe: RecipeOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    home: HomeOption = None,
    host: Annotated[
        str, typer.Option("--host", help="Where Prefect and the annotation page listen.")
    ] = LOOPBACK,
    prefect_port: Annotated[int, typer.Option("--prefect-port", min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", min=1, max=65535)] = 5000,
    annotation_port: Annotated[int, typer.Option("--annotation-port", min=1, max=65535)] = 8400,
    cron: Annotated[str, typer.Option("--cron", help="When the weekly iteration starts.")] = (
        "0 3 * * 1"
    ),
    timezone: Annotated[str, typer.Option("--timezone", help="Of --cron.")] = "UTC",
) -> None:
    """Start Prefect, MLflow, the annotation page and the workers, and keep them until Ctrl-C.

    \b
    - `rlhf up --recipe demo`
    - `rlhf up --cron "0 3 * * 1" --timezone Europe/London`

    The weekly deployment then runs the next iteration of the home's recipe, and
    `rerun-stage/any` any stage again. `rlhf run` and `rlhf stage` report to these servers, too.

    All listens on loopback. With --host, PREFECT_SERVER_API_AUTH_STRING must be set to
    name:password; clients then need it as PREFECT_API_AUTH_STRING. MLflow stays on loopback.
    """
    where = _absolute(places(home))
    at = Addresses(host, prefect_port, mlflow_port, annotation_port)
    secret = secret_of(os.environ)
    chosen = chosen_recipe(recipe, set_, where, data, None, None, None)
    from flows.standing import state

    state.refuse_second(where)
    at.check(secret)
    from flows.occupied import claim
    from flows.standing.programs import POOLS, environment_of
    from flows.standing.up import Servers

    if chosen.data_dir is None:  # workers run in folders of their own
        chosen = chosen.model_copy(update={"data_dir": Path.cwd()})
    claim(where, chosen)
    prepare(where)
    console = Console(highlight=False)

    def announce() -> None:
        for line in (
            f"Prefect      {at.prefect}",
            f"MLflow       {at.mlflow}",
            f"Annotation   {at.annotation}",
            f"Workers      {', '.join(POOLS)}",
            f"Schedule     {cron} ({timezone}), rlhf-iteration/weekly",
            f"Logs         {where.local / 'logs'}",
            "Ctrl-C or `rlhf down` ends all of it.",
        ):
            console.print(line, soft_wrap=True, markup=False)

    schedule = {"RLHF_CRON": cron, "RLHF_TIMEZONE": timezone}
    environment = environment_of(where, at, secret, schedule)
    console.print(f"Starting the servers of {where.home} …", soft_wrap=True, markup=False)
    Servers(where, at, environment, say=lambda line: console.print(line, markup=False)).run(
        announce
    )


@paragraphs
def down(home: HomeOption = None) -> None:
    """End what `rlhf up` started; a stage at work saves what it can and goes on next time."""
    where = _absolute(places(home))
    from flows.standing.up import end

    typer.echo(
        f"The servers of {where.home} have ended"
        if end(where, _DOWN_SECONDS)
        else f"No servers of {where.home} are up"
    )


def _absolute(where: Places) -> Places:
    """Workers run in folders of their own: a relative home would be another one there."""
    local = where.local.absolute()
    return Places(where.home if "://" in where.home else str(local), Path(local))
