"""Steps whose loss or gradient is not finite: skipped, counted, and after too many an error."""

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from data_contracts.errors import UserError
from stages.runtime.distributed import Rank
from stages.runtime.settings import EngineSettings

LOG = logging.getLogger(__name__)
_NUM_NAMED = 20
"""Rows that the error names; the log names all."""


class DivergedError(UserError):
    """Too many steps were skipped: training ends here, and the newest checkpoint is before them."""

    def __init__(self, num_steps: int, in_a_row: int, total: int, ids: Sequence[str]) -> None:
        named = ", ".join(ids[:_NUM_NAMED]) or "not named by the stage"
        more = f" and {len(ids) - _NUM_NAMED} more" if len(ids) > _NUM_NAMED else ""
        super().__init__(
            f"Training diverged after {num_steps} steps: the loss or its gradient was not finite "
            f"in {in_a_row} in a row ({total} in all), the last time for the rows {named}{more}",
            "Look at these rows; else lower learning_rate, lengthen the warm-up or lower "
            "gradient_clipping",
        )


class SkippedSteps:
    """Counts skipped steps and knows whose rows they were. All ranks make the same calls."""

    total: int
    """Over all resumed runs."""

    def __init__(self, settings: EngineSettings, rank: Rank) -> None:
        self.total = 0
        self._in_a_row = 0
        self._most_in_a_row = settings.max_skipped_in_a_row
        self._most = settings.max_skipped_steps
        self._rank = rank
        self._watched: list[tuple[Tensor, Sequence[str]]] = []

    def watch(self, loss: Tensor, ids: Sequence[str]) -> None:
        """Remember a micro-batch of the step to come; the loss is looked at only if need be."""
        self._watched.append((loss.detach(), ids))

    def judge(self, num_steps: int, gradient_norm: float) -> None:
        """Take in a step after `num_steps` others; a norm that is not finite means it was skipped.

        Raises DivergedError after more skipped steps than the settings allow.
        """
        watched, self._watched = self._watched, []
        if math.isfinite(gradient_norm):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        # Every rank sees the same norm, so all are here.
        ids = self._guilty(watched)
        if self._rank.is_main:
            LOG.warning("Step %d was skipped, not finite: %s", num_steps, ", ".join(ids))
        if self._in_a_row > self._most_in_a_row or self.total > self._most:
            raise DivergedError(num_steps, self._in_a_row, self.total, ids)

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"num_skipped": self.total, "num_skipped_in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on counting where `state` was taken."""
        self.total = state["num_skipped"]
        self._in_a_row = state["num_skipped_in_a_row"]

    def _guilty(self, watched: list[tuple[Tensor, Sequence[str]]]) -> list[str]:
        """Rows of the micro-batches without a finite loss on any rank; else those of all."""
        guilty = [id_ for loss, ids in watched if not torch.isfinite(loss) for id_ in ids]
        everything = [id_ for _, ids in watched for id_ in ids]
        shares = self._rank.gather_objects((guilty, everything))
        return list(chain(*(g for g, _ in shares))) or list(chain(*(e for _, e in shares)))
