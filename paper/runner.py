"""Measure the findings seed by seed in parallel processes, one thread each, and say how far it is.

Every job is one finding on one seed. Jobs share stage runs through the store: where two of them
need the same run at the same time, one waits for the other.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from data_contracts.errors import UserError
from data_contracts.store import Store
from paper.finding import Estimates, Finding, Result, conclude
from paper.findings import FINDINGS
from paper.lab import Lab
from paper.scale import Scale

Say = Callable[[str], None]
BASE = "base"
"""The job that makes a seed's base model, before its findings."""


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
    outcomes: list[Outcome] = []
    started = time.monotonic()
    jobs = all_jobs(findings, scale.seeds)
    # spawned: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=one_thread) as pool:
        for outcome in worked_off(pool, home, scale, jobs):
            outcomes.append(outcome)
            say(progress_line(outcome, len(outcomes), len(jobs), time.monotonic() - started))
    return [gathered(finding, outcomes) for finding in findings]


def chosen(letters: Sequence[str]) -> list[Finding]:
    """The findings of these letters, all when none are given.

    Raises UserError for a letter that stands for none.
    """
    known = {finding.letter: finding for finding in FINDINGS}
    if unknown := sorted(set(letters) - known.keys()):
        raise UserError(f"There is no finding ({unknown[0]})", f"Choose among {', '.join(known)}")
    return [f for letter, f in known.items() if not letters or letter in letters]


def all_jobs(findings: Sequence[Finding], seeds: Sequence[int]) -> list[Job]:
    """Finding by finding; those that do not depend on the seed once."""
    return [
        Job(finding.letter, seed)
        for finding in findings
        for seed in (seeds if finding.every_seed else seeds[:1])
    ]


def worked_off(
    pool: ProcessPoolExecutor, home: str, scale: Scale, jobs: Sequence[Job]
) -> Iterator[Outcome]:
    """Outcomes as they come: each seed's base first, then whatever asks for it."""
    waiting: set[Future[Outcome]] = set()
    for job in jobs:
        if not _finding(job).every_seed:
            waiting.add(pool.submit(work, home, scale, job))
    bases = {
        pool.submit(work, home, scale, Job(BASE, seed))
        for seed in dict.fromkeys(job.seed for job in jobs if _finding(job).every_seed)
    }
    while waiting or bases:
        done = next(as_completed(waiting | bases))
        outcome = done.result()
        if done in bases:
            bases.remove(done)
            ready = [j for j in jobs if j.seed == outcome.job.seed and _finding(j).every_seed]
            if outcome.failure:
                yield from (Outcome(job, failure=outcome.failure) for job in ready)
            else:
                waiting |= {pool.submit(work, home, scale, job) for job in ready}
        else:
            waiting.remove(done)
            yield outcome


def _finding(job: Job) -> Finding:
    return next(f for f in FINDINGS if f.letter == job.letter)


def work(home: str, scale: Scale, job: Job) -> Outcome:
    """One job, in a process of the pool."""
    started = time.monotonic()

    def report(stage: str, seconds: float) -> None:
        print(f"    {stage}: {seconds:.0f} s", flush=True)

    try:
        lab = Lab(Store.open(home), scale, job.seed, report)
        if job.letter == BASE:
            lab.node(0, "sft")
            return Outcome(job, seconds=time.monotonic() - started)
        estimates = _finding(job).measure(lab)
    except Exception as error:  # one finding's failure is no reason to lose the others
        reason = "".join(traceback.format_exception_only(error)).strip()
        print(traceback.format_exc(), flush=True)
        return Outcome(job, failure=reason, seconds=time.monotonic() - started)
    return Outcome(job, estimates, seconds=time.monotonic() - started)


def one_thread() -> None:
    """Each process has one core, and gives way to whatever else the user does."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def progress_line(outcome: Outcome, num_done: int, num_jobs: int, seconds: float) -> str:
    """Which job ended, and when all will have, at the pace so far."""
    left = seconds / num_done * (num_jobs - num_done)
    name = f"({outcome.job.letter}) seed {outcome.job.seed}"
    state = f"failed: {outcome.failure}" if outcome.failure else f"{outcome.seconds:.0f} s"
    return f"[{num_done}/{num_jobs}] {name}: {state}; about {left / 60:.0f} min left"


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
        },
        "seconds": result.seconds,
    }
