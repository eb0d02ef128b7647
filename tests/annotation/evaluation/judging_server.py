"""Judges behind a real HTTP endpoint, each with a flaw that the client has to live with."""

import threading
from collections import Counter
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

Judge = Callable[[str, str], str]


def longer(first: str, second: str) -> str:
    """A judge without a side: the longer response is better."""
    if len(first) == len(second):
        return "Equal. [[tie]]"
    return f"The texts said [[2]], but I say [[{1 if len(first) > len(second) else 2}]]"


def leftist(_first: str, _second: str) -> str:
    """A judge who sees nothing but the order."""
    return "[[1]]"


class Court:
    """An endpoint, what it was asked, and what it does before it answers."""

    def __init__(self, judge: Judge, before: Callable[["Court", str], Response | None]) -> None:
        self.judge = judge
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.app = FastAPI()
        self.before = before

        @self.app.post("/v1/chat/completions", response_model=None)
        def complete(request: Request, body: dict) -> Response:
            prompt = body["messages"][-1]["content"]
            with self.lock:
                self.asked[prompt] += 1
                self.keys.add(request.headers.get("authorization"))
            early = self.before(self, prompt)
            if early is not None:
                return early
            first = prompt.split("<response 1>\n")[1].split("\n</response 1>")[0]
            second = prompt.split("<response 2>\n")[1].split("\n</response 2>")[0]
            message = {"role": "assistant", "content": self.judge(first, second)}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            return JSONResponse({"choices": [{"message": message}], "usage": usage})

    def first_time(self, prompt: str) -> bool:
        """Whether this is the first request of its kind."""
        with self.lock:
            return self.asked[prompt] == 1


def at_once(_court: Court, _prompt: str) -> Response | None:
    """Nothing happens before the answer."""
    return None
