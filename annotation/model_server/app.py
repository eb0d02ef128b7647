"""The HTTP side: a subset of OpenAI's chat completions, plain and streamed.

Accepted: model, messages, temperature, top_p, max_tokens, seed, stream. Anything else that would
change the answer (stop, n, tools, …) is refused rather than ignored.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field, field_validator
from starlette.requests import Request as HttpRequest

from annotation.formats.records import Message
from annotation.model_server.engine import BadRequestError, Engine, Request
from data_contracts.base import Contract
from kernels.generation import SMALLEST_TEMPERATURE, Sampling


class ChatRequest(Contract):
    """The body of a request."""

    messages: tuple[Message, ...] = Field(min_length=1)
    model: str | None = None
    """Any name: one process serves one model."""
    temperature: float = Field(default=1.0, ge=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Default: 256, or what the context has room for."""
    seed: int | None = Field(default=None, ge=0, lt=2**62)
    stream: bool = False
    user: str | None = None

    @field_validator("messages")
    @classmethod
    def _is_text(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        for message in messages:
            message.content.encode()  # half of a surrogate pair, which JSON may hold, is none
        return messages

    @field_validator("temperature")
    @classmethod
    def _is_zero_or_not_tiny(cls, temperature: float) -> float:
        if 0 < temperature < SMALLEST_TEMPERATURE:
            raise ValueError(f"give 0, or at least {SMALLEST_TEMPERATURE}")
        return temperature


def create_model_app(engine: Engine, name: str) -> FastAPI:
    """The endpoint of one model."""
    app = FastAPI(title=name, docs_url=None, redoc_url=None)
    app.add_exception_handler(BadRequestError, _bad_request)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get("/healthz")
    def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "rlhf"}]}

    @app.post("/v1/chat/completions", response_model=None)
    def complete(body: ChatRequest) -> dict[str, Any] | StreamingResponse:
        """A response to a dialogue."""
        sampling = Sampling(
            max_new_tokens=body.max_tokens or engine.default_length,
            temperature=body.temperature,
            top_p=body.top_p,
        )
        messages = [message.model_dump() for message in body.messages]
        request = engine.submit(messages, sampling, body.seed)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if body.stream:
            return StreamingResponse(_events(engine, request, head), media_type="text/event-stream")
        return _completion(engine, request, head)

    return app


def _completion(engine: Engine, request: Request, head: dict[str, Any]) -> dict[str, Any]:
    tokens = list(request)
    num_prompt, num_completion = len(request.prompt), len(tokens)
    message = {"role": "assistant", "content": engine.text(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": request.finish_reason}
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
        },
    }


def _events(engine: Engine, request: Request, head: dict[str, Any]) -> Iterator[str]:
    """Server-sent events; a reader who leaves frees the request's place."""

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        for piece in engine.pieces(request):
            yield event({"content": piece})
        yield event({}, request.finish_reason)
        yield "data: [DONE]\n\n"
    finally:
        request.is_abandoned = True


async def _bad_request(_request: HttpRequest, error: Exception) -> JSONResponse:
    return _refusal(str(error), BadRequestError.status)


async def _invalid(_request: HttpRequest, error: Exception) -> JSONResponse:
    """FastAPI's own answer repeats what was sent, and not all of that can be sent back."""
    assert isinstance(error, RequestValidationError)
    problems = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return _refusal("; ".join(problems), 422)


def _refusal(message: str, status: int) -> JSONResponse:
    readable = message.encode("utf-8", "backslashreplace").decode()  # names of fields, for one
    body = {"error": {"message": readable, "type": "invalid_request_error"}}
    return JSONResponse(body, status)
