"""The Prefect server that a run starts for itself."""

import asyncio

import httpx

from flows.server import retry_soon


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
