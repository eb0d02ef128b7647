"""How one side of a comparison hands its time measurements over, round by round."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """What a side did in one turn."""

    seconds: float
    amount: float
    """Work done, in the benchmark's unit: tokens or rows that carry content, padding excluded."""
    facts: dict[str, float]
    """Other numbers that the side measured; of its last lap."""

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.amount / self.seconds


class Turns:
    """The clock of one side: `start` when all is set up, `lap` after every piece of work.

    Laps make up rounds. Before each round `wait` blocks until it is this side's turn; after it,
    `report` takes the result. `settle` waits for work that was left to a GPU; that time counts.
    The first round is warm-up, and the reader of the reports drops it.
    """

    def __init__(
        self,
        num_rounds: int,
        laps_per_round: int,
        wait: Callable[[], None],
        report: Callable[[Round], None],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.num_laps = (1 + num_rounds) * laps_per_round
        """Laps that the side must make, those of the warm-up included."""
        self._laps_per_round = laps_per_round
        self._wait = wait
        self._report = report
        self._settle = settle
        self._laps = 0
        self._amount = 0.0

    def start(self) -> None:
        """Wait for this side's turn and start the clock."""
        self._wait()
        self._amount = 0.0
        self._began = time.perf_counter()

    def lap(self, amount: float, **facts: float) -> None:
        """A piece of work is done; at the end of a round this waits for the next turn."""
        self._amount += amount
        self._laps += 1
        if self._laps % self._laps_per_round == 0:
            self._settle()
            seconds = time.perf_counter() - self._began
            self._report(Round(seconds, self._amount, facts))
            if self._laps < self.num_laps:
                self.start()
