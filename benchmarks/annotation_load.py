"""Can fifty annotators work at once on two cores?

    python -m benchmarks.annotation_load                      # SQLite, 5 minutes
    python -m benchmarks.annotation_load --kill-every 20      # kill -9 of what serves, meanwhile
    python -m benchmarks.annotation_load --kill-every 20 --victim listening    # of its parent
    python -m benchmarks.annotation_load --kill-every 20 --victim both
    python -m benchmarks.annotation_load --database postgresql://…

Fifty simulated annotators use the real server over HTTP, each thinking for a while between labels.
Prints one JSON object: labels, errors, p50 and p95 of a submission (the label on the disk and the
next item back), and whether every acknowledged label is there exactly once. Exits with 1 when a
label was lost, or an item given to two people.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy import select

from annotation.accounts import invite
from annotation.batches import BatchPlan, publish
from annotation.simulation import SimulatedAnnotator, Tally
from annotation.storage.database import Database, open_database, sqlite_url
from annotation.storage.schema import Entry, Role, SlotPurpose
from data_contracts.ratings import Domain
from stages.sandbox.annotator import AnnotatorSettings

_PATIENCE_SECONDS = 300
"""On a machine that has much else to do, a killed server is back only after a while."""

MUST_BE_NONE = ("items_given_to_two", "acknowledged_and_lost", "items_labelled_twice")


def main() -> None:
    """Run the load and print what was found."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or sqlite_url(Path(folder) / "annotation.db")
        database = open_database(url)
        tokens = _set_up(database, options.annotators, options.seconds)
        server = _Server(url)
        stop = threading.Event()
        killer = threading.Thread(
            target=server.kill_every, args=(options.kill_every, options.victim, stop)
        )
        try:
            people = _people(server.url, tokens)
            killer.start()
            tallies = _work(people, options.seconds, options.think)
        finally:
            stop.set()
            if killer.is_alive():
                killer.join()
            server.stop()
        findings = _findings(database, tallies)
        database.close()
    print(json.dumps(findings, indent=2))
    if any(findings[name] for name in MUST_BE_NONE):
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--think", type=float, default=5, help="mean seconds between labels")
    parser.add_argument("--kill-every", type=float, default=0, help="seconds; 0 for never")
    parser.add_argument(
        "--victim",
        choices=("serving", "listening", "both"),
        default="serving",
        help="the process that serves the page, the one that forks it, or both",
    )
    parser.add_argument("--database", help="an empty database of your own")
    return parser.parse_args()


def _set_up(database: Database, num_annotators: int, seconds: float) -> list[str]:
    now = datetime.now(UTC)
    rows = [_comparison(i) for i in range(int(num_annotators * seconds))]
    with database.writing() as session:
        publish(session, 1, rows, BatchPlan(), now)
        return [invite(session, Role.annotator, now, None) for _ in range(num_annotators)]


def _comparison(number: int) -> dict:
    words = "the answer goes on for a while and says little " * 20
    return {
        "comparison_id": f"c{number}",
        "prompt_id": f"p{number}",
        "domain": Domain.helpfulness,
        "category": None,
        "messages": [{"role": "user", "content": f"Question {number}? {words[:200]}"}],
        "response_a": f"First: {words}",
        "response_b": f"Second: {words[::-1]}",
        "model_a": "v1",
        "model_b": "sft",
        "temperature_a": 1.0,
        "temperature_b": 1.0,
    }


def _people(url: str, tokens: list[str]) -> list[SimulatedAnnotator]:
    """All logged in."""
    settings = AnnotatorSettings()
    people = [
        SimulatedAnnotator(url, token, number, settings, 0, _PATIENCE_SECONDS)
        for number, token in enumerate(tokens)
    ]
    for person in people:
        person.register()
    return people


def _work(people: list[SimulatedAnnotator], seconds: float, think: float) -> list[Tally]:
    """All work until the time is over."""
    deadline = time.monotonic() + seconds

    def work(number: int) -> Tally:
        rng = random.Random(number)

        def keeps_going() -> bool:
            time.sleep(rng.expovariate(1 / think) if think else 0)
            return time.monotonic() < deadline

        return people[number].work([Domain.helpfulness], None, keeps_going)

    with ThreadPoolExecutor(len(people)) as pool:
        return list(pool.map(work, range(len(people))))


class _Server:
    """`rlhf annotations serve`, which can be killed."""

    def __init__(self, database_url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "flows.cli", "annotations", "serve"]
        self._command += ["--port", str(port), "--database", database_url]
        self._start()

    def kill_every(self, seconds: float, victim: str, stop: threading.Event) -> None:
        """kill -9 until told to stop."""
        while seconds and not stop.wait(seconds):
            serving = self._serving_process()
            if victim != "serving":
                self._process.kill()  # first: it would fork the next
                self._process.wait()
            if victim != "listening":
                os.kill(serving, signal.SIGKILL)
            if victim != "serving":
                self._start()

    def _serving_process(self) -> int:
        """The process that serves, forked by the one that listens."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        while not (found := children.read_text().split()):
            if self._process.poll() is not None:
                raise RuntimeError("the server has ended by itself")
            time.sleep(0.01)  # it has just been started: what it takes over still serves
        return int(found[0])

    def stop(self) -> None:
        """As Ctrl-C does it."""
        self._process.terminate()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, env=dict(os.environ))
        while True:
            try:
                httpx.get(f"{self.url}/healthz", trust_env=False)
                return
            except httpx.TransportError:
                time.sleep(0.1)


def _findings(database: Database, tallies: list[Tally]) -> dict:
    with database.reading() as session:
        entries = session.scalars(select(Entry)).all()
    kept = Counter(entry.submission_id for entry in entries)
    acknowledged = {name for tally in tallies for name in tally.submission_ids}
    collected = Counter(e.item_id for e in entries if e.purpose == SlotPurpose.collect)
    seconds = sorted(second for tally in tallies for second in tally.seconds)
    return {
        "annotators_who_finished": len(tallies),
        "labels": len(seconds),
        "requests_sent_again": sum(tally.num_retries for tally in tallies),
        "items_given_to_two": sum(tally.num_taken for tally in tallies),
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * seconds[int(0.95 * len(seconds))], 1),
        "acknowledged_and_lost": len(acknowledged - set(kept)),
        "items_labelled_twice": sum(count > 1 for count in collected.values()),
    }


if __name__ == "__main__":
    main()
