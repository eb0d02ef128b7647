"""A dialogue with one model that goes on and on: old turns leave when the context is full."""

from dataclasses import dataclass, field

from annotation.model_server.engine import Engine, Request
from data_contracts.errors import UserError
from kernels.generation import Sampling
from stages.text.dialogue import render_prompt

SMALLEST_REPLY_TOKENS = 8
"""A message that leaves less room than this in the context is refused."""


@dataclass
class Conversation:
    """One model's side of a dialogue."""

    engine: Engine
    name: str
    system: str = ""
    num_forgotten: int = 0
    """Turns (a message and its response) that the context no longer holds."""
    _turns: list[dict[str, str]] = field(default_factory=list)
    _asked: list[dict[str, str]] = field(default_factory=list)
    """The turns with the message that is being answered."""

    def ask(
        self, text: str, *, max_tokens: int | None, temperature: float, top_p: float, seed: int
    ) -> Request:
        """Start the response to a message.

        Turns are forgotten, the oldest first, until the response has room; the system message
        stays. Raises UserError when even the message alone leaves none.
        """
        length = max_tokens or self.engine.default_length
        asked = {"role": "user", "content": text}
        turns, num_forgotten = [*self._turns, asked], 0
        while (room := self._room(turns)) < length and len(turns) > 1:
            turns = turns[2:]
            num_forgotten += 1
        if room < min(length, SMALLEST_REPLY_TOKENS):
            context = self.engine.model.config.max_seq_len
            raise UserError(
                f"The message has {context - room} tokens with its system message, and "
                f"{self.name} reads and writes {context} in all",
                "Shorten it",
            )
        self._asked = turns
        self.num_forgotten += num_forgotten
        sampling = Sampling(min(length, room), temperature, top_p)
        return self.engine.submit(self._messages(turns), sampling, seed)

    def answered(self, text: str) -> None:
        """Keep what the model has said; a response that was broken off counts as far as it went."""
        self._turns = [*self._asked, {"role": "assistant", "content": text}]

    def reset(self) -> None:
        """Forget every turn, and how many were forgotten before."""
        self._turns = []
        self.num_forgotten = 0

    def _messages(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *turns]

    def _room(self, turns: list[dict[str, str]]) -> int:
        """Tokens that are free behind a dialogue."""
        used = len(render_prompt(self._messages(turns), self.engine.tokenizer))
        return self.engine.model.config.max_seq_len - used
