"""MLflow is away: a walk warns once, goes on, and asks again after a while."""

import math
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from flows.environment import Places
from flows.tracking.access import reason_of

PAUSE_SECONDS = 30.0
"""From a call that failed to the next one: a dead server costs two timeouts at a time."""

T = TypeVar("T")


class Onlooker:
    """One who tells MLflow of work that must not wait for it."""

    def __init__(self, where: Places, warn: Callable[[str], None]) -> None:
        self.where = where
        self.warn = warn
        self.broken = False
        """Whether MLflow did not answer last time."""
        self._ask_at = math.inf
        """When it is asked again, on the monotonic clock; when it is broken."""

    @property
    def is_pausing(self) -> bool:
        """Whether MLflow has failed so lately that it is not asked again yet."""
        return self.broken and time.monotonic() < self._ask_at

    def ask_now(self) -> None:
        """Do not wait out the pause of a failed call."""
        if math.isfinite(self._ask_at):
            self._ask_at = 0.0

    def give_up(self, error: Exception) -> None:
        """Warn once, keep the traceback in mlflow/errors.log, leave MLflow alone for a while."""
        self._ask_at = time.monotonic() + PAUSE_SECONDS
        if self.broken:
            return
        self.broken = True
        self.warn(
            f"MLflow at {self.where.mlflow} is not taking records ({reason_of(error)}); the run "
            "goes on, and what is missing is recorded once it answers, or by the next run"
        )
        with suppress(OSError):  # the disk may be full, which may be the very error
            log = self.where.local / "mlflow" / "errors.log"
            with log.open("a", encoding="utf-8") as file:
                file.writelines(traceback.format_exception(error))

    def is_back(self) -> None:
        """MLflow has answered."""
        if self.broken:
            self.broken = False
            self.warn(f"MLflow at {self.where.mlflow} takes records again")


def never_fails(method: Callable[..., T]) -> Callable[..., T | None]:
    """Make an Onlooker's method warn once instead of raising; all then do nothing for a while."""

    @wraps(method)
    def guarded(self: Onlooker, *args: Any, **kwargs: Any) -> T | None:
        if self.is_pausing:
            return None
        try:
            value = method(self, *args, **kwargs)
            self.is_back()
            return value
        except Exception as error:
            # whatever MLflow, its HTTP client or its database raises, or a mistake of ours: days
            # of training are worth more than their record, and the log has the traceback
            self.give_up(error)
            return None

    return guarded
