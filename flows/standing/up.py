"""Start the servers and workers of a home, keep them running, and end all of them."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from data_contracts.durable import disk_full
from data_contracts.errors import UserError
from flows.environment import Places
from flows.server import is_full
from flows.standing import state
from flows.standing.addresses import Addresses
from flows.standing.descendants import descendants, end_descendants, inherit_orphans
from flows.standing.lost_runs import lost_runs
from flows.standing.programs import (
    POOLS,
    Program,
    log_of,
    owns_mlflow_database,
    servers,
    workers,
)

_START_SECONDS = 600.0
"""A busy machine imports Prefect and MLflow for minutes. A program that ends is seen at once."""
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 60.0
_STEADY_SECONDS = 60.0
"""A program that has run so long is not failing at once: its next restart does not wait."""
_ORPHAN_GRACE_SECONDS = 20.0
_LOST_SECONDS = 60.0
"""For so long a run may have no process: it is being started, or its end is being told."""


class Interrupted(Exception):  # noqa: N818 - no error: the user has ended the servers
    """Ctrl-C, or TERM from `rlhf down`."""


@dataclass
class _Kept:
    """A program and the keeper that runs it."""

    program: Program
    keeper: subprocess.Popen[bytes]
    started_at: float
    num_failures: int = 0
    restart_at: float = 0.0


class Servers:
    """The programs of one home, children of this process."""

    def __init__(
        self,
        where: Places,
        at: Addresses,
        pools: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._where = where
        self._at = at
        self._pools = pools
        self._environment = environment
        self._say = say
        self._kept: list[_Kept] = []
        self._asked: list[int] = []
        self._lost: set[str] = set()
        """Runs that had no process when it was looked last."""
        self._looked_at = time.monotonic()

    def run(self, announce: Callable[[], None]) -> None:
        """Start everything, call `announce` when it answers, and stay until asked to end.

        Returns after Ctrl-C or TERM, with no process left. Raises UserError when a program does
        not start; then, too, none is left.
        """
        inherit_orphans()
        with state.standing(self._where, self._at), self._signals_kept():
            try:
                self._start(servers(self._where, self._at), before=self._make_database)
                self._register()
                self._put_back(self._pools)
                self._start(workers(self._at, self._pools))
                state.write(self._where, self._at, ready=True)
                announce()
                while True:
                    self._look_after()
                    self._look_for_lost_runs()
                    self._pause()
            except Interrupted:
                self._say("Ending …")
            finally:
                self._end()

    @contextmanager
    def _signals_kept(self) -> Iterator[None]:
        """A signal is only noted; it becomes Interrupted where we look."""
        # under nohup a hang-up is ignored, and that is what was asked for
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]
        before = {n: signal.signal(n, lambda n, _: self._asked.append(n)) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pause(self) -> None:
        time.sleep(_POLL_SECONDS)
        if self._asked:
            raise Interrupted

    def _make_database(self) -> None:
        """MLflow refuses for good a database whose making was interrupted: make it whole."""
        if owns_mlflow_database() and not self._where.mlflow_database.exists():
            self._run_to_end("mlflow-database", ("flows.standing.database",))

    def _register(self) -> None:
        self._run_to_end("deployments", ("flows.standing.deployments",))

    def _put_back(self, pools: Sequence[str], runs: Sequence[str] = ()) -> None:
        """What workers that are gone were running: see leftovers."""
        only = ("--runs", *runs) if runs else ()
        self._run_to_end("leftovers", ("flows.standing.leftovers", *pools, *only))

    def _run_to_end(self, name: str, command: Sequence[str]) -> None:
        """Run a module that ends by itself; its last line is the reason when it fails."""
        kept = self._launch(Program(name, command[0], tuple(command[1:]), ""))
        try:
            while kept.keeper.poll() is None:
                self._pause()
            if kept.keeper.returncode:
                raise self._failure(kept)
        finally:
            self._end_all([kept])

    def _start(
        self, programs: Sequence[Program], before: Callable[[], None] = lambda: None
    ) -> None:
        before()
        self._kept += [self._launch(program) for program in programs]
        deadline = time.monotonic() + _START_SECONDS
        for kept in self._kept:
            while not self._is_at_work(kept.program):
                self._pause()
                self._check_starting(deadline)

    def _check_starting(self, deadline: float) -> None:
        for kept in self._kept:
            if kept.keeper.poll() is not None or time.monotonic() > deadline:
                raise self._failure(kept)

    def _launch(self, program: Program) -> _Kept:
        log = log_of(self._where, program.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            keeper = subprocess.Popen(
                [
                    *(sys.executable, "-m", "flows.standing.keeper", str(os.getpid())),
                    *(str(program.grace_seconds), program.module, *program.arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self._environment),
                start_new_session=True,  # Ctrl-C is ours
            )
        return _Kept(program, keeper, time.monotonic())

    def _is_at_work(self, program: Program) -> bool:
        """Whether its URL answers; of a worker's pool also that the worker has reported.

        A pool that somebody has paused says nothing of its worker, and is to stay paused.
        """
        content = self._get(program.health)
        if content is None:
            return False
        return not program.pool or json.loads(content)["status"] in ("READY", "PAUSED")

    def _get(self, url: str) -> bytes | None:
        request = urllib.request.Request(url)
        if secret := self._environment.get("PREFECT_API_AUTH_STRING"):
            basic = base64.b64encode(secret.encode()).decode()
            request.add_header("Authorization", f"Basic {basic}")
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                return answer.read()
        except (OSError, urllib.error.HTTPError):
            return None

    def _look_after(self) -> None:
        """Start again what has ended, at once and then after longer and longer pauses."""
        for i, kept in enumerate(self._kept):
            if kept.keeper.poll() is None:
                continue
            if kept.restart_at == 0.0:
                self._end_orphans()
                kept.num_failures = self._num_failures(kept)
                pause = min(2.0 ** (kept.num_failures - 1) - 1, _LONGEST_PAUSE_SECONDS)
                kept.restart_at = time.monotonic() + pause
                self._say(f"{kept.program.name} ended; starting it again in {pause:.0f} s")
            if time.monotonic() >= kept.restart_at:
                if kept.program.pool:
                    self._try_to_put_back([kept.program.pool])
                again = self._launch(kept.program)
                again.num_failures = kept.num_failures
                self._kept[i] = again

    def _look_for_lost_runs(self) -> None:
        """Put back what has had no process since the look before this one."""
        if time.monotonic() - self._looked_at < _LOST_SECONDS:
            return
        self._looked_at = time.monotonic()
        secret = self._environment.get("PREFECT_API_AUTH_STRING", "")
        try:
            # on a stage's pool workers of other machines may work, too
            now = lost_runs(self._at.api, secret, list(POOLS), descendants())
        except OSError:  # the server is away
            return
        if still := sorted(now & self._lost):
            self._say(f"No process works for {len(still)} run(s) any more; putting back")
            self._try_to_put_back(list(POOLS), still)
        self._lost = now

    def _try_to_put_back(self, pools: Sequence[str], runs: Sequence[str] = ()) -> None:
        try:
            self._put_back(pools, runs)
        except UserError as error:  # the server may be away, too; the next `rlhf up` does it
            self._say(str(error))

    def _num_failures(self, kept: _Kept) -> int:
        is_steady = time.monotonic() - kept.started_at > _STEADY_SECONDS
        return 1 if is_steady else kept.num_failures + 1

    def _end_orphans(self) -> None:
        """End what a killed keeper has left to us."""
        keepers = [kept.keeper.pid for kept in self._kept if kept.keeper.poll() is None]
        end_descendants(_ORPHAN_GRACE_SECONDS, except_below=keepers)

    def _end(self) -> None:
        """Workers first: their runs still report to the server."""
        self._end_all([kept for kept in self._kept if kept.program.pool])
        self._end_all(self._kept)
        end_descendants(_ORPHAN_GRACE_SECONDS)

    def _end_all(self, kept_list: Sequence[_Kept]) -> None:
        for kept in kept_list:
            if kept.keeper.poll() is None:
                kept.keeper.terminate()
        for kept in kept_list:
            kept.keeper.wait()

    def _failure(self, kept: _Kept) -> UserError:
        log = log_of(self._where, kept.program.name)
        if is_full(log):
            return disk_full(f"start {kept.program.name} with a database in", log.parent.parent)
        lines = [line.strip(" │╭╰─╮╯") for line in log.read_text(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "its log is empty")
        return UserError(
            f"{kept.program.name} did not start: {last[:200]}",
            f"Its whole log is {log}; mend the cause and run `rlhf up` again",
        )


def end(where: Places, patience_seconds: float) -> bool:
    """Ask the process that keeps a home's servers to end them, and wait; False if there is none.

    Raises UserError when it is on another machine, or still there after so many seconds.
    """
    kept = state.read(where)
    if kept is None:
        return False
    if kept.host != os.uname().nodename:
        raise UserError(
            f"The servers of {where.home} are kept by process {kept.pid} on {kept.host}",
            "Run `rlhf down` there",
        )
    try:
        os.kill(kept.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended by itself
    except PermissionError:
        raise UserError(
            f"The servers of {where.home} are kept by process {kept.pid} of another user",
            "Run `rlhf down` as that user",
        ) from None
    deadline = time.monotonic() + patience_seconds
    while state.is_held(where):
        if time.monotonic() > deadline:
            raise UserError(
                f"Process {kept.pid} has not ended the servers of {where.home} yet",
                "Its stages may still be saving; wait, and look again with `rlhf down`",
            )
        time.sleep(_POLL_SECONDS)
    return True
