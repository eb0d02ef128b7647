"""Make the work pools and register prefect.yaml at the server of PREFECT_API_URL.

    python -m flows.standing.deployments

A pool or deployment that is there already is brought up to date.
"""

import os
import sys
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists

from flows.standing.programs import POOLS

FILE = Path(__file__).parents[1] / "prefect.yaml"


def ensure_pool(client: SyncPrefectClient, name: str, limit: int) -> None:
    """A pool of local processes with so many runs at a time; a pause of it is kept."""
    pool = WorkPoolCreate(name=name, type="process", concurrency_limit=limit)
    try:
        client.create_work_pool(pool)
    except ObjectAlreadyExists:
        client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def main() -> None:
    """Make the pools, then become `prefect deploy`."""
    with get_client(sync_client=True) as client:
        for name, limit in POOLS.items():
            ensure_pool(client, name, limit)
    command = (*("-m", "prefect", "--no-prompt", "deploy", "--all"), "--prefect-file", str(FILE))
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
