"""The Prefect server that a run starts for itself."""

import asyncio
import os
from types import SimpleNamespace

import httpx

from flows import server
from flows.environment import places
from flows.server import begin_api, retry_soon


def test_only_a_busy_database_is_asked_again_soon():
    async def app(scope, receive, send):
        status = int(scope["path"].strip("/"))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"said"})

    async def ask(status):
        transport = httpx.ASGITransport(app=retry_soon(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(f"/{status}")

    answers = {status: asyncio.run(ask(status)) for status in (200, 500, 503)}
    assert {status: answer.text for status, answer in answers.items()} == dict.fromkeys(
        answers, "said"
    )
    waits = {status: answer.headers.get("retry-after") for status, answer in answers.items()}
    assert waits == {200: None, 500: None, 503: "0.2"}


def test_who_exports_the_address_that_up_prints_reports_to_its_mlflow_too(tmp_path, monkeypatch):
    where = places(str(tmp_path / "home"))
    servers = SimpleNamespace(prefect="http://here:4200", mlflow="http://here:5000", ready=True)
    monkeypatch.setattr(server.state, "read", lambda _: servers)
    for api, expected in (("http://here:4200/api", "http://here:5000"), ("http://else/api", None)):
        monkeypatch.setenv("PREFECT_API_URL", api)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        begin_api(where)
        assert os.environ.get("MLFLOW_TRACKING_URI") == expected
