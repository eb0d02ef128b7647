"""Measure the findings seed by seed in parallel processes, one thread each, and say how far it is.

Every job is one finding on one seed. Jobs share stage runs through the store: where two of them
need the same run at the same time, one waits for the other.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from data_contracts.errors import UserError
from data_contracts.store import Store
from paper.finding import Estimates, Finding, Result, conclude
from paper.findings import FINDINGS
from paper.lab import Lab
from paper.scale import Scale
from stages.runtime.supervisor import die_with_parent

Say = Callable[[str], None]
FIRST = "imop"
"""The versions' chain, then what needs little or nothing of it."""


@dataclass(frozen=True)
class Job:
    """A finding's letter on one seed."""

    letter: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a job measured, or why it did not."""

    job: Job
    estimates: Estimates = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0


def run_findings(
    home: str, scale: Scale, letters: Sequence[str], num_processes: int, say: Say
) -> list[Result]:
    """Every finding over every seed. A job that fails leaves its finding open, with the reason."""
    findings = chosen(letters)
    jobs = all_jobs(findings, scale)
    progress = Progress(jobs)
    outcomes: list[Outcome] = []
    # spawned: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=begin, initargs=(os.getpid(),)
    ) as pool:
        for done in as_completed([pool.submit(work, home, scale, job) for job in jobs]):
            outcomes.append(done.result())
            say(progress.line(outcomes[-1]))
    return [gathered(finding, outcomes) for finding in findings]


def chosen(letters: Sequence[str]) -> list[Finding]:
    """The findings of these letters, all when none are given.

    Raises UserError for a letter that stands for none.
    """
    known = {finding.letter: finding for finding in FINDINGS}
    if unknown := sorted(set(letters) - known.keys()):
        raise UserError(f"There is no finding ({unknown[0]})", f"Choose among {', '.join(known)}")
    return [f for letter, f in known.items() if not letters or letter in letters]


def all_jobs(findings: Sequence[Finding], scale: Scale) -> list[Job]:
    """Seed after seed for each finding, in an order that keeps processes out of each other's way:
    the longest chain first, then what needs nothing of it.

    Findings that do not depend on the seed come once.
    """
    order = sorted(findings, key=lambda f: (FIRST + f.letter).index(f.letter))
    return [Job(f.letter, seed) for f in order for seed in seeds_of(f, scale)]


def seeds_of(finding: Finding, scale: Scale) -> Sequence[int]:
    """The seeds that a finding is measured on."""
    if not finding.every_seed:
        return scale.seeds[:1]
    return scale.seeds[: scale.num_seeds_of_long] if finding.takes_long else scale.seeds


class Progress:
    """How far a run is, by the findings' weights."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._started = time.monotonic()
        self._num_jobs = len(jobs)
        self._num_done = 0
        self._left = sum(_finding(job).weight for job in jobs)
        self._done = 0.0

    def line(self, outcome: Outcome) -> str:
        """Which job ended, and when all will have, at the pace so far."""
        weight = _finding(outcome.job).weight
        self._num_done += 1
        self._done += weight
        self._left -= weight
        minutes = (time.monotonic() - self._started) / self._done * self._left / 60
        name = f"({outcome.job.letter}) seed {outcome.job.seed}"
        state = f"failed: {outcome.failure}" if outcome.failure else f"{outcome.seconds:.0f} s"
        left = f"about {minutes:.0f} min left"
        return f"[{self._num_done}/{self._num_jobs}] {name}: {state}; {left}"


def _finding(job: Job) -> Finding:
    return next(f for f in FINDINGS if f.letter == job.letter)


def work(home: str, scale: Scale, job: Job) -> Outcome:
    """One job, in a process of the pool."""
    started = time.monotonic()

    def report(stage: str, seconds: float) -> None:
        print(f"    {stage}: {seconds:.0f} s", flush=True)

    try:
        lab = Lab(Store.open(home), scale, job.seed, report)
        estimates = _finding(job).measure(lab)
    except Exception as error:  # one finding's failure is no reason to lose the others
        reason = "".join(traceback.format_exception_only(error)).strip()
        print(traceback.format_exc(), flush=True)
        return Outcome(job, failure=reason, seconds=time.monotonic() - started)
    return Outcome(job, estimates, seconds=time.monotonic() - started)


def begin(parent: int) -> None:
    """Each process has one core, and ends with the one that it works for."""
    die_with_parent(parent)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def gathered(finding: Finding, outcomes: Sequence[Outcome]) -> Result:
    """A finding's result from its jobs."""
    own = [o for o in outcomes if o.job.letter == finding.letter]
    measured = {o.job.seed: o.estimates for o in sorted(own, key=_seed) if not o.failure}
    failures = {o.job.seed: o.failure for o in own if o.failure}
    return conclude(finding, measured, failures, sum(o.seconds for o in own))


def _seed(outcome: Outcome) -> int:
    return outcome.job.seed


def as_record(result: Result) -> dict[str, Any]:
    """A result as JSON: for other programs, and to be compared with a later run."""
    return {
        "finding": result.finding.letter,
        "paper": result.finding.paper,
        "claim": result.finding.claim,
        "verdict": result.verdict.value,
        "seeds": list(result.seeds),
        "failures": {str(seed): reason for seed, reason in result.failures.items()},
        "effects": {
            e.name: {
                "says": e.says,
                "above": e.above,
                "verdict": e.verdict(result.intervals[e.name]).value,
            }
            for e in result.effects
        },
        "numbers": {
            name: {"value": i.value, "low": i.low, "high": i.high}
            for name, i in result.intervals.items()
            if i.is_known
        },
        "seconds": result.seconds,
    }
