"""`rlhf up` and `rlhf down`: the servers and workers of a home."""

import os
import re
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.console import Console

from data_contracts.errors import UserError
from flows.cli_options import (
    DataOption,
    HomeOption,
    RecipeOption,
    SetOption,
    chosen_recipe,
    opened,
    paragraphs,
)
from flows.environment import Places, places, prepare
from flows.standing.addresses import CLIENT_SECRET_VARIABLE, LOOPBACK, Addresses, secret_of

_DOWN_SECONDS = 180.0
"""A stage may take half a minute to save, and each program has its own grace."""


CronOption = Annotated[str, typer.Option("--cron", help="When the weekly iteration starts.")]
TimeZoneOption = Annotated[str, typer.Option("--timezone", help="Of --cron.")]
WebhookOption = Annotated[
    str,
    typer.Option(
        "--webhook",
        envvar="RLHF_WEBHOOK",
        help="URL that is told of failed, crashed, late and stalled runs, and of failed gates.",
    ),
]
WEEKLY = "0 3 * * 1"


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
    cron: CronOption = WEEKLY,
    timezone: TimeZoneOption = "UTC",
    webhook: WebhookOption = "",
) -> None:
    """Start Prefect, MLflow, the annotation page and the workers, and keep them until Ctrl-C.

    \b
    - `rlhf up --recipe demo`
    - `rlhf up --cron "0 3 * * 1" --timezone Europe/London`

    The weekly deployment then runs the next iteration of the home's recipe, and
    `rerun-stage/any` any stage again. `rlhf run` on the same home reports to these servers, too.

    All listens on loopback. With --host, PREFECT_SERVER_API_AUTH_STRING must be set to
    name:password; clients then need it as PREFECT_API_AUTH_STRING. MLflow stays on loopback.
    """
    where = _absolute(places(home))
    at = Addresses(host, prefect_port, mlflow_port, annotation_port)
    secret = secret_of(os.environ)
    chosen = chosen_recipe(recipe, set_, where, data, None, None, None)
    from flows.standing import state

    state.refuse_second(where)
    _check_schedule(cron, timezone)
    _check_webhook(webhook)
    at.check(secret)
    from flows.occupied import claim
    from flows.planner import as_far_as_begun
    from flows.standing.programs import POOLS, environment_of, stage_pools, user_variables
    from flows.standing.up import Servers

    # the weekly iterations go on beyond the file's num_versions, and the home's recipe with them
    claim(where, as_far_as_begun(chosen, opened(where)[1]))
    prepare(where)
    console = Console(highlight=False)

    def announce() -> None:
        for line in (
            f"Prefect      {at.prefect}",
            f"MLflow       {at.mlflow}",
            f"Annotation   {at.annotation}",
            f"Workers      {', '.join(pools)}",
            f"Schedule     {cron} ({timezone}), rlhf-iteration/weekly",
            f"Logs         {where.local / 'logs'}",
            f"For prefect  export PREFECT_API_URL={at.api}"
            + (f" {CLIENT_SECRET_VARIABLE}=NAME:PASSWORD" if secret else ""),
            "Ctrl-C or `rlhf down` ends all of it.",
        ):
            console.print(line, soft_wrap=True, markup=False)

    pools = [*POOLS, *stage_pools(chosen)]
    environment = environment_of(where, at, secret, user_variables(cron, timezone, webhook))
    console.print(f"Starting the servers of {where.home} …", soft_wrap=True, markup=False)

    def say(line: str) -> None:
        console.print(line, markup=False)

    Servers(where, at, pools, environment, say).run(announce)


@paragraphs
def down(home: HomeOption = None) -> None:
    """End what `rlhf up` started. A stage at work saves what it can; what is finished is reused."""
    where = _absolute(places(home))
    from flows.standing.up import end

    typer.echo(
        f"The servers of {where.home} have ended"
        if end(where, _DOWN_SECONDS)
        else f"No servers of {where.home} are up"
    )


@paragraphs
def deploy(
    recipe: RecipeOption = None,
    home: HomeOption = None,
    cron: CronOption = WEEKLY,
    timezone: TimeZoneOption = "UTC",
    webhook: WebhookOption = "",
) -> None:
    """Make the work pools and register the deployments at the server of PREFECT_API_URL.

    `rlhf up` does it by itself; this is for servers that run elsewhere (deploy/README.md).
    """
    from flows.server import API_URL_VARIABLE, server_errors_explained

    where = _absolute(places(home))
    if API_URL_VARIABLE not in os.environ:
        raise UserError(
            f"{API_URL_VARIABLE} does not say which server", "Set it to http://HOST:PORT/api"
        )
    chosen_recipe(recipe, None, where, None, None, None, None)
    _check_schedule(cron, timezone)
    _check_webhook(webhook)
    prepare(where)
    from flows.standing.programs import user_variables

    is_file = recipe is not None and Path(recipe).expanduser().exists()
    named = str(Path(recipe).expanduser().absolute()) if recipe and is_file else recipe
    os.environ |= {
        "RLHF_HOME": where.home,
        "RLHF_RECIPE": named or str(where.recipe),
        "RLHF_FLOW_COMMAND": "",  # a worker elsewhere has another Python, or a container
        **user_variables(cron, timezone, webhook),
    }
    from flows.standing.deployments import main

    with server_errors_explained(where):
        main(heartbeats=True)


def _check_schedule(cron: str, timezone: str) -> None:
    """Raise UserError for what is plainly no schedule; Prefect checks the rest."""
    if not re.fullmatch(r"\s*([A-Za-z0-9*/,#?-]+\s+){4}[A-Za-z0-9*/,#?-]+\s*", cron):
        raise UserError(
            f"--cron {cron!r} is not minute, hour, day, month and weekday",
            'Write for instance --cron "0 3 * * 1", Mondays at three',
        )
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(
            f"There is no time zone {timezone!r}", "Write for instance UTC or Europe/London"
        ) from None


def _check_webhook(url: str) -> None:
    """Raise UserError for what is plainly no address."""
    if url and not re.fullmatch(r"https?://[^\s/]+\S*", url):
        raise UserError(f"--webhook {url!r} is no address", "Write http://… or https://…")


def _absolute(where: Places) -> Places:
    """Workers run in folders of their own: a relative home would be another one there."""
    local = where.local.absolute()
    return Places(where.home if "://" in where.home else str(local), Path(local))
