"""Flow runs that hold a place of their pool although no process works for them.

A run's process says itself how it ended, and its worker says so in its place. When neither could,
because the server's disk was full or the server was away for too long, Prefect shows the run as
Running for ever, and nothing else of its pool starts.
"""

import base64
import json
import urllib.request
import uuid
from collections.abc import Collection, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any

_FLOW_RUN_VARIABLE = b"PREFECT__FLOW_RUN_ID="
"""Set by a worker for the process of a flow run."""
_HELD = ("PENDING", "RUNNING", "CANCELLING")
_ANSWER_SECONDS = 10.0


def lost_runs(api: str, secret: str, pools: Collection[str], pids: Iterable[int]) -> set[str]:
    """Ids of the runs of these pools that none of these processes works for.

    Raises OSError when the server does not answer, or not as it should.
    """
    held = held_runs(api, secret, pools)
    return held - runs_of(pids) if held else held


def held_runs(api: str, secret: str, pools: Collection[str]) -> set[str]:
    """Ids of the runs of these pools that Prefect believes somebody to work for."""
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    client = str(uuid.uuid4())
    token = _answer(urllib.request.Request(f"{api}/csrf-token?client={client}", headers=headers))
    headers |= {"Prefect-Csrf-Token": token["token"], "Prefect-Csrf-Client": client}
    wanted = {
        "flow_runs": {"state": {"type": {"any_": list(_HELD)}}},
        "work_pools": {"name": {"any_": list(pools)}},
    }
    content = json.dumps(wanted).encode()
    found = _answer(urllib.request.Request(f"{api}/flow_runs/filter", content, headers))
    return {str(run["id"]) for run in found}


def runs_of(pids: Iterable[int]) -> set[str]:
    """Ids of the flow runs that these processes were started for."""
    found: set[str] = set()
    for pid in pids:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        found |= {
            variable.removeprefix(_FLOW_RUN_VARIABLE).decode()
            for variable in variables
            if variable.startswith(_FLOW_RUN_VARIABLE)
        }
    return found


def _answer(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return json.load(answer)
    except (HTTPException, ValueError) as error:  # it ended while it answered
        raise OSError(str(error)) from error
