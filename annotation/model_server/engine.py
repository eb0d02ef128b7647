"""Serving many requests at once from one model.

One thread owns the model. Requests that wait are read together as a cohort, with a cache of their
own, and all cohorts write one token in turn: a new request starts at once, however long the others
are. Everything per token is `kernels.generation`'s.
"""

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from annotation.refusals import RefusedError
from kernels.decoding import Decoder, prefill
from kernels.generation import Sampling, draw
from kernels.model import CausalLM
from stages.text.dialogue import render_prompt
from stages.text.tokenizer import Tokenizer

MAX_COHORT = 64
"""Requests that are read together."""

DEFAULT_MAX_TOKENS = 256
_REPLACEMENT = "\ufffd"


class BadRequestError(RefusedError):
    """The request asks for what the model cannot do."""

    status = 400


@dataclass
class Request:
    """One response being written; tokens arrive in `tokens`, None ends them."""

    prompt: list[int]
    sampling: Sampling
    seed: int
    tokens: queue.SimpleQueue[int | Exception | None] = field(default_factory=queue.SimpleQueue)
    is_abandoned: bool = False
    """Set when nobody reads any more."""
    finish_reason: str = "length"

    def __iter__(self) -> Iterator[int]:
        """The tokens as they are drawn, without the EOS."""
        while (token := self.tokens.get()) is not None:
            if isinstance(token, Exception):
                raise token
            yield token


@dataclass
class _Cohort:
    """Requests that were read together and share a cache."""

    requests: list[Request]
    decoder: Decoder
    logits: torch.Tensor
    """[requests, vocabulary], of the next token."""
    uniforms: torch.Tensor
    """[requests, steps], the random number behind each token."""
    step: int = 0


class Engine:
    """A model that answers requests until it is closed."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(
        self, messages: Sequence[dict[str, str]], sampling: Sampling, seed: int | None
    ) -> Request:
        """Start a response; raises BadRequestError for a dialogue out of order or too long."""
        try:
            prompt = render_prompt(messages, self.tokenizer)
        except ValueError as error:
            raise BadRequestError(str(error), "Send user and assistant messages in turn") from None
        room = self.model.config.max_seq_len - len(prompt)
        if room < sampling.max_new_tokens:
            raise BadRequestError(
                f"The prompt has {len(prompt)} tokens and leaves room for {max(room, 0)}",
                "Shorten it, or lower max_tokens",
            )
        request = Request(prompt, sampling, secrets.randbits(62) if seed is None else seed)
        self._waiting.put(request)
        return request

    def text(self, tokens: Sequence[int]) -> str:
        """Decoded response."""
        return self.tokenizer.decode(list(tokens))

    def pieces(self, request: Request) -> Iterator[str]:
        """New text after each token; a character whose bytes are not all there waits for them."""
        tokens: list[int] = []
        sent = ""
        for token in request:
            tokens.append(token)
            text = self.text(tokens)
            if not text.endswith(_REPLACEMENT) and text.startswith(sent) and text != sent:
                yield text[len(sent) :]
                sent = text
        rest = self.text(tokens)
        if rest != sent:
            yield rest[len(sent) :]

    @property
    def default_length(self) -> int:
        """Tokens of a response where nobody says how many."""
        return min(DEFAULT_MAX_TOKENS, self.model.config.max_seq_len // 2)

    def close(self) -> None:
        """Stop after what is being written."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        cohorts: list[_Cohort] = []
        while True:
            arrived, is_closing = self._arrivals(may_wait=not cohorts)
            if arrived:
                cohorts += _guarded(arrived, partial(self._read, arrived))
            if is_closing and not cohorts:
                return
            cohorts = [
                kept
                for cohort in cohorts
                for kept in _guarded(cohort.requests, partial(self._advance, cohort))
            ]

    def _arrivals(self, may_wait: bool) -> tuple[list[Request], bool]:
        """Requests that wait now; when there is nothing else to do, wait for one."""
        arrived: list[Request] = []
        while len(arrived) < MAX_COHORT:
            try:
                request = self._waiting.get(block=may_wait and not arrived)
            except queue.Empty:
                break
            if request is None:
                self._waiting.put(None)  # for the next round, until nothing is being written
                return arrived, True
            arrived.append(request)
        return arrived, False

    @torch.inference_mode()
    def _read(self, requests: list[Request]) -> list[_Cohort]:
        steps = max(request.sampling.max_new_tokens for request in requests)
        decoder, logits = prefill(self.model, [r.prompt for r in requests], steps)
        uniforms = torch.stack(
            [
                torch.rand(steps, generator=torch.Generator().manual_seed(request.seed))
                for request in requests
            ]
        ).to(logits.device)
        return [_Cohort(requests, decoder, logits, uniforms)]

    @torch.inference_mode()
    def _advance(self, cohort: _Cohort) -> list[_Cohort]:
        """One more token for every request of a cohort; nothing when all have ended."""
        tokens = self._draw(cohort)
        cohort.step += 1
        alive = []
        for row, (request, token) in enumerate(zip(cohort.requests, tokens.tolist(), strict=True)):
            if not self._hand_over(request, token, cohort.step):
                alive.append(row)
        if not alive:
            return []
        if len(alive) < len(cohort.requests):
            keep = torch.tensor(alive, device=tokens.device)
            cohort.decoder.keep(keep)
            cohort.requests = [cohort.requests[row] for row in alive]
            cohort.uniforms, tokens = cohort.uniforms[keep], tokens[keep]
        cohort.logits = cohort.decoder.step(tokens)
        return [cohort]

    def _draw(self, cohort: _Cohort) -> torch.Tensor:
        """Each request's next token under its own settings [requests]."""
        tokens = torch.empty(len(cohort.requests), dtype=torch.int64, device=cohort.logits.device)
        kinds: dict[tuple[float, float], list[int]] = {}
        for row, request in enumerate(cohort.requests):
            kind = (request.sampling.temperature, request.sampling.top_p)
            kinds.setdefault(kind, []).append(row)
        for rows in kinds.values():
            sampling = cohort.requests[rows[0]].sampling
            uniforms = cohort.uniforms[rows, cohort.step]
            tokens[rows], _ = draw(cohort.logits[rows], uniforms, sampling)
        return tokens

    def _hand_over(self, request: Request, token: int, num_tokens: int) -> bool:
        """Give a token to whoever reads; True when it was the last one."""
        is_eos = token == self.tokenizer.eos_id
        if is_eos:
            request.finish_reason = "stop"
        else:
            request.tokens.put(token)
        ends = is_eos or num_tokens >= request.sampling.max_new_tokens or request.is_abandoned
        if ends:
            request.tokens.put(None)
        return ends


def _guarded(requests: list[Request], work: Callable[[], list[_Cohort]]) -> list[_Cohort]:
    """What `work` gives; an error ends its own requests and no others."""
    try:
        return work()
    except Exception as error:
        for request in requests:
            request.tokens.put(error)
        return []
