"""Prefect's and MLflow's REST API as their pages call it: with the secret and a CSRF token."""

import base64
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

PATIENCE_SECONDS = 1800.0
"""For one flow run that takes 20 s: a busy machine may be many times slower than a calm one."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_AWAY_SECONDS = 600.0
"""A server that was killed is started again and answers within this."""

_PERSON_SECONDS = 30.0


class Prefect:
    """What a person at Prefect's page can see and press."""

    def __init__(self, url: str, secret: str) -> None:
        self._url = url
        self._secret = secret

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The answer to a request; one that a restarting or busy server refuses is made again."""
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                return self._call(path, body, method)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:  # SQLite is busy
                    raise AssertionError(f"{path}: {error.code} {error.read()[:500]}") from error
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def _call(self, path: str, body: Any, method: str | None) -> Any:
        basic = base64.b64encode(self._secret.encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
        if body is not None or method is not None:
            client = str(uuid.uuid4())
            token = self._call(f"/csrf-token?client={client}", None, None)["token"]
            headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by flow/name."""
        return self.call(f"/deployments/name/{name}")

    def start(self, deployment: str, **parameters: Any) -> str:
        """What the page's Run button sends; returns the flow run's id."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        found = self.deployment(deployment)
        return self.call(f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def set_state(self, run: str, type_: str, name: str) -> None:
        """What the page's Retry and Cancel send."""
        state = {"type": type_, "name": name, "message": "From the page"}
        answer = self.call(f"/flow_runs/{run}/set_state", {"state": state, "force": True})
        assert answer["status"] == "ACCEPT", answer

    def retry(self, run: str) -> None:
        """The page's Retry, at a person's pace: of a process that was killed Prefect's worker tells
        twice, with the import of the flow between, and undoes a Retry that came in between."""
        time.sleep(_PERSON_SECONDS)
        self.set_state(run, "SCHEDULED", "AwaitingRetry")

    def cancel(self, run: str) -> None:
        """The page's Cancel."""
        self.set_state(run, "CANCELLING", "Cancelling")

    def run(self, run: str) -> dict[str, Any]:
        """A flow run."""
        return self.call(f"/flow_runs/{run}")

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        """Flow runs that a filter finds."""
        return self.call("/flow_runs/filter", filters)

    def await_state(self, run: str, *types: str) -> dict[str, Any]:
        """A flow run once its state is of one of these types."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := self.run(run))["state_type"] not in types:
            assert time.monotonic() < deadline, f"{found['name']} stays {found['state_name']}"
            time.sleep(0.3)
        return found

    def completed(self, run: str) -> dict[str, Any]:
        """A flow run once it has ended, and ended well."""
        found = self.await_state(run, *ENDED)
        assert found["state_type"] == "COMPLETED", f"{found['name']}: {found['state']['message']}"
        return found

    def at_work(self) -> list[str]:
        """Flow runs that hold a place now."""
        held = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        return [f"{run['name']} {run['state_name']}" for run in self.runs(flow_runs=held)]

    def slots(self) -> dict[str, float]:
        """Slots in use, by concurrency limit; those without any left out."""
        limits = self.call("/v2/concurrency_limits/filter", {})
        return {limit["name"]: limit["active_slots"] for limit in limits if limit["active_slots"]}


class Mlflow:
    """What MLflow's page shows."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/2.0/mlflow"

    def call(self, path: str, body: Any = None) -> Any:
        """The answer to a request."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/{path}", content, headers)
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{path}: {error.code} {error.read()[:500]}") from error
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def answers(self) -> bool:
        """Whether anybody listens there."""
        try:
            with urllib.request.urlopen(
                f"{self._url}/experiments/search?max_results=1", timeout=60
            ):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """All runs of an experiment: id, name, status, tags; none before there is one."""
        named = {"filter": f"name = '{experiment}'", "max_results": 1}
        found = self.call("experiments/search", named).get("experiments", [])
        if not found:
            return []
        body = {"experiment_ids": [found[0]["experiment_id"]], "max_results": 5000}
        return [
            {
                "id": run["info"]["run_id"],
                "name": run["info"]["run_name"],
                "status": run["info"]["status"],
                "tags": {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])},
                "metrics": [metric["key"] for metric in run["data"].get("metrics", [])],
            }
            for run in self.call("runs/search", body).get("runs", [])
        ]

    def forget(self, run: str) -> None:
        """Delete a run."""
        self.call("runs/delete", {"run_id": run})

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        """A metric of a run: (step, value) in the order of the steps."""
        return sorted(self._rows(run, metric))

    def _rows(self, run: str, metric: str) -> Iterator[tuple[int, float]]:
        token = ""
        while True:
            query = f"run_id={run}&metric_key={quote(metric)}&max_results=25000"
            page = self.call(
                f"metrics/get-history?{query}" + (f"&page_token={token}" * bool(token))
            )
            for row in page.get("metrics", []):
                yield int(row.get("step", 0)), float(row["value"])
            token = page.get("next_page_token", "")
            if not token:
                return
