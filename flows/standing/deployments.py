"""Make the work pools, automations and deployments at the server of PREFECT_API_URL.

    python -m flows.standing.deployments

RLHF_RECIPE says whose pools, RLHF_WEBHOOK who is told of trouble, and prefect.yaml the rest. What
is there already is brought up to date.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings

from flows.recipe import load_recipe
from flows.standing.automations import WEBHOOK_VARIABLE, register
from flows.standing.programs import POOLS, stage_pools

FILE = Path(__file__).parents[1] / "prefect.yaml"
FOR_EACH_POOL = "POOL"
"""Name of the deployment, and of its pool, that is made for each pool of the recipe."""


def ensure_pool(client: SyncPrefectClient, name: str, limit: int) -> None:
    """A pool of local processes with so many runs at a time; a pause of it is kept."""
    pool = WorkPoolCreate(name=name, type="process", concurrency_limit=limit)
    try:
        client.create_work_pool(pool)
    except ObjectAlreadyExists:
        # how many stages run on a pool at a time is for who made it: its cards, its type
        if name in POOLS:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def deployments(pools: Sequence[str]) -> dict[str, Any]:
    """prefect.yaml with one deployment for each pool of the recipe."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    (each,) = (d for d in content["deployments"] if d["name"] == FOR_EACH_POOL)
    content["deployments"].remove(each)
    content["deployments"] += [
        {**each, "name": pool, "work_pool": {"name": pool}} for pool in pools
    ]
    return content


def main(*, heartbeats: bool = False) -> None:
    """Make the pools and automations, then become `prefect deploy`.

    `heartbeats` has runs that are silent for long called crashed.
    """
    pools = stage_pools(load_recipe(os.environ["RLHF_RECIPE"]))
    with get_client(sync_client=True) as client:
        for name, limit in {**POOLS, **pools}.items():
            ensure_pool(client, name, limit)
        register(client, os.environ.get(WEBHOOK_VARIABLE, ""), heartbeats=heartbeats)
    file = get_current_settings().home / "deployments.yaml"
    file.write_text(json.dumps(deployments(list(pools)), indent=2), encoding="utf-8")  # YAML, too
    command = (*("-m", "prefect", "--no-prompt", "deploy", "--all"), "--prefect-file", str(file))
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
