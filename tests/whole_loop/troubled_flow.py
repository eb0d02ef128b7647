"""Runs that get into trouble, and the automations that tell of it; started by test_automations."""

import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client

from data_contracts.store import Store
from flows.boards import ReportingTerminal, publish_gates
from flows.gates import Gate, Verdict
from flows.standing.automations import register


def automations(webhook: str, late_seconds: str) -> None:
    with get_client(sync_client=True) as client:
        late = timedelta(seconds=float(late_seconds))
        print(*register(client, webhook, heartbeats=True, late=late), sep="\n")


@flow(name="failing", flow_run_name="doomed", persist_result=False)
def failing() -> None:
    raise ValueError('a reason with "quotes" and ümlauts')


@flow(name="silent", flow_run_name="silent", persist_result=False)
def silent() -> None:
    time.sleep(3600)


@flow(name="stalling", flow_run_name="rlhf-v7", persist_result=False)
def stalling() -> None:
    """A stage whose progress does not move, and then a policy that is no better."""
    home = Path(os.environ["RLHF_HOME"])
    terminal = ReportingTerminal(stalled_minutes=0.02)
    with terminal.watching("v7/ppo", Store.open(home), "0" * 64):
        time.sleep(5)
    gate = Gate(model="policy", condition="is better", measured=0.4, limit=0.5, passed=False)
    publish_gates(Verdict(version=7, gates=(gate,)))


if __name__ == "__main__":
    os.environ.setdefault("RLHF_HOME", tempfile.gettempdir())
    kind, *arguments = sys.argv[1:]
    {"automations": automations, "failing": failing, "silent": silent, "stalling": stalling}[kind](
        *arguments
    )
