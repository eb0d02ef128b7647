"""Runs of a stage for `resuming.runner`, and where they are killed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kill:
    """Where a job ends: so many steps (PPO: iterations) are done, and then …"""

    done: int
    micro_batch: int = 0
    """… before the backward pass of this micro-batch,"""
    in_save: bool = False
    """… or, instead, with a part of the checkpoint's first file written."""


@dataclass(frozen=True)
class Job:
    """One run of a stage, by one process or by several."""

    stage: str
    home: str
    config: str
    """The stage's, as JSON."""
    num_ranks: int
    kill: Kill | None
    report: str
    """File for what a finished run ended with, as JSON."""
    bug: str = ""
    """Of `resuming.bugs`, planted into the run."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Job":
        kill = fields["kill"]
        return cls(**{**fields, "kill": Kill(**kill) if kill else None})
