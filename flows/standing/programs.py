"""The programs of `rlhf up`: their commands and the settings they read."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_contracts.errors import UserError
from flows.environment import Places
from flows.recipe import Recipe
from flows.standing.addresses import CLIENT_SECRET_VARIABLE, LOOPBACK, SECRET_VARIABLE, Addresses

POOLS = {"rlhf": 1, "rlhf-watch": 1}
"""Work pool → runs at a time. One run works in a home at a time; watching needs its own, or it
would queue behind a week of training."""


def stage_pools(recipe: Recipe) -> dict[str, int]:
    """The same of the pools that a recipe runs single stages on: one stage at a time on each.

    Raises UserError for a pool on which an iteration would wait for itself.
    """
    pools = sorted(set(recipe.launch.pools.values()))
    if own := POOLS.keys() & pools:
        raise UserError(
            f"launch.pools names {min(own)}, whose worker waits for the stage meanwhile",
            "Name another pool",
        )
    return dict.fromkeys(pools, 1)


_SERVER_GRACE_SECONDS = 10.0
_WORKER_GRACE_SECONDS = 40.0
"""Prefect gives a flow run 30 s to save what it can."""
_WORKER_QUERY_SECONDS = 1


@dataclass(frozen=True)
class Program:
    """One program, started by its module."""

    name: str
    module: str
    arguments: tuple[str, ...]
    health: str
    """URL that answers once the program is at work."""
    grace_seconds: float = _SERVER_GRACE_SECONDS
    pool: str = ""
    """Of a worker: the pool it works for."""


def owns_mlflow_database() -> bool:
    """Whether MLflow's database is a file in the home. Else the user names another one, as one does
    for Prefect by PREFECT_API_DATABASE_CONNECTION_URL, and MLflow itself reads that variable."""
    return not os.environ.get("MLFLOW_BACKEND_STORE_URI")


def servers(where: Places, at: Addresses) -> list[Program]:
    """What answers on a port, in the order in which it is needed."""
    backend = ("--backend-store-uri", f"sqlite:///{where.mlflow_database}")
    prefect = ("server", "start", "--host", at.host, "--port", str(at.prefect_port))
    mlflow = (
        *("server", "--host", LOOPBACK, "--port", str(at.mlflow_port), "--workers", "1"),
        *(backend if owns_mlflow_database() else ()),  # no password on a command line
        *("--artifacts-destination", where.mlflow_artifacts),
        *("--allowed-hosts", f"{LOOPBACK}:{at.mlflow_port},localhost:{at.mlflow_port}"),
    )
    page = (
        *("annotations", "serve", "--host", at.host, "--port", str(at.annotation_port)),
        *("--home", where.home),
    )
    return [
        Program("prefect-server", "prefect", prefect, f"{at.api}/health"),
        Program("mlflow", "mlflow", mlflow, f"{at.mlflow}/health"),
        Program("annotations", "flows.cli", page, f"{at.annotation}/healthz"),
    ]


def workers(at: Addresses, pools: Iterable[str]) -> list[Program]:
    """A worker for each pool."""
    return [
        Program(
            f"worker-{pool}",
            "prefect",
            ("worker", "start", "--pool", pool, "--type", "process", "--name", pool),
            f"{at.api}/work_pools/{pool}",
            _WORKER_GRACE_SECONDS,
            pool,
        )
        for pool in pools
    ]


def environment_of(
    where: Places, at: Addresses, secret: str, own: Mapping[str, str]
) -> dict[str, str]:
    """What all programs read; `own` has the user's variables."""
    settings = {
        "RLHF_HOME": where.home,
        "RLHF_RECIPE": str(where.recipe.resolve()),
        "RLHF_FLOW_COMMAND": f"{shlex.quote(sys.executable)} -m prefect.engine",
        "PREFECT_API_URL": at.api,
        "PREFECT_HOME": str(where.prefect_home),
        # What a browser asks: without it port 4200, and on another machine its own. There the user
        # says by which name this one is known.
        "PREFECT_SERVER_UI_API_URL": os.environ.get("PREFECT_SERVER_UI_API_URL", at.api),
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(where.prefect_home / "page"),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # in memory a restart of the server would leak every slot that is held
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        "PREFECT_WORKER_QUERY_SECONDS": str(_WORKER_QUERY_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # into the program's log
        "MLFLOW_TRACKING_URI": at.mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # on by default, and nothing here uses it
        "PYTHONUNBUFFERED": "1",
    }
    if secret:
        settings |= {SECRET_VARIABLE: secret, CLIENT_SECRET_VARIABLE: secret}
    return {**os.environ, **settings, **own}


def user_variables(cron: str, timezone: str, webhook: str) -> dict[str, str]:
    """What the user says to the deployments: when the weekly iteration starts, who is told."""
    return {"RLHF_CRON": cron, "RLHF_TIMEZONE": timezone, "RLHF_WEBHOOK": webhook}


def log_of(where: Places, name: str) -> Path:
    """Where a program's output goes."""
    return where.local / "logs" / f"{name}.log"
