"""A home with the servers and workers that `rlhf up` keeps for it, and its processes by role."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from drill.api import ENDED, PATIENCE_SECONDS, Mlflow, Prefect
from drill.ports import lasting_port
from whole_loop_home import RLHF, TINY, environment_of, processes_on, run_rlhf

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.environment import Places
from flows.standing.programs import POOLS

SECRET = "admin:drill"
WEEKLY = "rlhf-iteration/weekly"
RERUN = "rerun-stage/any"
_POLL_SECONDS = 0.1
_MODULES = {
    "rank": "stages.pretrain",
    "launcher": "torch.distributed.run",
    "supervisor": "stages.runtime.supervisor",
    "flow run": "prefect.engine",
}


class House:
    """One home in a folder, what `rlhf up` runs for it, and what one can do to it."""

    def __init__(self, folder: Path, home: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.home = home
        self.environment = {"PREFECT_SERVER_API_AUTH_STRING": SECRET, **environment}
        self.recipe = folder / "drill.yaml"
        values = yaml.safe_load((Path(__file__).parent / "recipe.yaml").read_text())
        self.write_recipe(self.recipe, {"extends": str(TINY), **values})
        self._ports = [lasting_port() for _ in range(3)]
        self.prefect = Prefect(f"http://127.0.0.1:{self._ports[0]}/api", SECRET)
        self.mlflow = Mlflow(f"http://127.0.0.1:{self._ports[1]}")
        self._up: subprocess.Popen[bytes] | None = None
        self.cron = "0 3 * * 1"
        self.standing: Counter[str] = Counter()
        """Programs of a house in order, by command."""

    def write_recipe(self, path: Path, values: Mapping[str, Any]) -> None:
        """A recipe file, as a user writes one."""
        path.write_text(yaml.safe_dump(dict(values)))

    # --- the servers ---

    def up(self) -> None:
        """`rlhf up`; returns once everything answers."""
        names = ("--prefect-port", "--mlflow-port", "--annotation-port")
        ports = [word for pair in zip(names, map(str, self._ports), strict=True) for word in pair]
        command = [RLHF, "up", "--recipe", self.recipe, "--cron", self.cron, *ports]
        with (self.folder / "up.log").open("ab") as log:
            self._up = subprocess.Popen(
                [str(word) for word in command],
                env=environment_of(self.home, **self.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until(self._is_ready, "the servers to be ready")
        programs = self.programs()
        # without a flow run's: the schedule may have fired already
        self.standing = Counter(
            {c: n for c, n in programs.items() if _MODULES["flow run"] not in c}
        )

    def _is_ready(self) -> bool:
        assert self._up is not None
        if self._up.poll() is not None:
            raise AssertionError((self.folder / "up.log").read_text()[-500:])
        with contextlib.suppress(OSError, ValueError):
            state = json.loads((self.home / "servers.json").read_text())
            # after a reboot a pool is Ready for a while by the heartbeat of the worker before
            workers = [self.pids(f"worker start --pool {pool} ") for pool in POOLS]
            return state["ready"] and state["pid"] == self._up.pid and all(workers)
        return False

    @property
    def is_up(self) -> bool:
        """Whether `rlhf up` is there."""
        return self._up is not None and self._up.poll() is None

    @property
    def up_pid(self) -> int:
        """Of `rlhf up`."""
        assert self._up is not None
        return self._up.pid

    def down(self) -> None:
        """`rlhf down`."""
        out = self.rlhf("down")
        assert out.returncode == 0, out.stderr
        assert self._up is not None
        self._up.wait(60)

    def cancel_everything(self) -> None:
        """End whatever flow run waits or is at work."""
        for run in self.prefect.runs(flow_runs={"state": {"type": {"not_any_": list(ENDED)}}}):
            self.prefect.set_state(run["id"], "CANCELLED", "Cancelled")

    def kill_everything(self) -> None:
        """SIGKILL to every process of the home at once, as when the machine loses power."""
        while pids := processes_on(self.home):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._up is not None:
                self._up.poll()
            time.sleep(0.05)
        if self._up is not None:
            self._up.wait(60)

    def rlhf(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """An `rlhf` command from another shell."""
        client = {"PREFECT_API_AUTH_STRING": SECRET}
        return run_rlhf(*arguments, home=self.home, cwd=self.folder, **self.environment | client)

    # --- processes ---

    def programs(self) -> Counter[str]:
        """Commands of the home's processes, numbers left out: they are pids and ports."""
        commands = (command_of(pid) for pid in processes_on(self.home))
        return Counter(re.sub(r"\d+", "N", " ".join(command)) for command in commands if command)

    def pids(self, role: str) -> list[int]:
        """Living processes that have a part in a stage, or are a program of `rlhf up`.

        Roles: rank, launcher, supervisor, flow run; else words of a program's command.
        """
        found = []
        for pid in processes_on(self.home):
            command = command_of(pid)
            module = command[command.index("-m") + 1] if "-m" in command else ""
            if role in _MODULES:
                is_it = module == _MODULES[role]
            else:
                is_it = role in " ".join(command) and "standing.keeper" not in module
            found += [pid] * is_it
        return found

    def kill(self, role: str) -> None:
        """kill -9 of the oldest process of a role."""
        pids = self.pids(role)
        assert pids, f"no {role} is there to be killed"
        os.kill(min(pids), signal.SIGKILL)

    @contextlib.contextmanager
    def held(self, role: str) -> Iterator[None]:
        """Stop a role's processes for the block, so that what it does comes in between."""
        pids = self.pids(role)
        assert pids, f"no {role} is there to be held"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # --- the store ---

    @property
    def where(self) -> Places:
        """The home's places."""
        return Places(str(self.home), self.home)

    @property
    def store(self) -> Store:
        """The home's store."""
        return Store.open(str(self.home))

    @property
    def ledger(self) -> Ledger:
        """The home's ledger."""
        return Ledger(self.store)

    def key(self, version: int, node: str) -> str:
        """The stage key that a node stands on."""
        key = self.ledger.head(version, node)
        assert key is not None, f"v{version}/{node} has not run"
        return key

    def digests(self, version: int) -> dict[str, str]:
        """Digest of every output of a version, by node and role."""
        ledger = self.ledger
        return {
            f"{node}:{role}": ref.digest
            for node in ledger.nodes(version)
            for role, ref in ledger.history(version, node)[-1].outputs.items()
        }

    def num_attempts(self) -> dict[str, int]:
        """Attempts so far by stage key: what ran in between shows as a difference."""
        return {folder.name: len([*folder.glob("attempt-*")]) for folder in self.work.iterdir()}

    @property
    def work(self) -> Path:
        """The folder of the stages' work folders."""
        return self.home / "work"

    def ran(self, before: Mapping[str, int]) -> list[str]:
        """Stages with new attempts since, one name for each."""
        names = []
        for key, number in self.num_attempts().items():
            manifest = self.store.recorded(key)
            stage = manifest.stage if manifest else f"{key[:12]}, unfinished"
            names += [stage] * (number - before.get(key, 0))
        return sorted(names)

    def a_week_passes(self) -> None:
        """Date the numbers that runs have taken back by a week."""
        path = self.home / "numbers.json"
        document = json.loads(path.read_text())
        for number in document["taken"]:
            monday = datetime.strptime(f"{number['week']}-1", "%G-W%V-%u") - timedelta(days=7)
            number["week"] = f"{monday:%G-W%V}"
        path.write_text(json.dumps(document))

    # --- waiting ---

    def wait_until(self, is_so: Callable[[], Any], what: str) -> None:
        """Look again and again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(_POLL_SECONDS)


def command_of(pid: int) -> list[str]:
    """A process's command line; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
