"""Two network namespaces as two machines that share a folder: one launch, a cut cable, another.

The first way is torchrun on each machine, found by a rendezvous; the second is DeepSpeed's launcher
with a hostfile, over ssh.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data_contracts.base import StageConfig
from data_contracts.keys import stage_key
from data_contracts.store import Store
from stages.runtime.stage import stage_module
from stages.runtime.workdir import read_metrics

ROOT = Path(__file__).parents[3]
STAGE = "sft"
PATIENCE_SECONDS = 600.0
"""For what takes half a minute on a calm machine."""
PATIENCE_MINUTES = 0.5
"""Of the ranks: a machine whose cable is cut sends no goodbye."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Host:
    """One machine: a namespace with an address and a cable to the other one."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.cable = f"{name[-4:]}-{name[5]}"

    def command(self, *command: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def start(self, *command: str | Path, log: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.cable,
            "RLHF_PATIENCE_MINUTES": str(PATIENCE_MINUTES),
        }
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*command), env=environment, stdout=output, stderr=output
            )

    def plug(self, state: str) -> None:
        """Plug the cable in ("up") or pull it out ("down")."""
        ip("netns", "exec", self.name, "ip", "link", "set", self.cable, state)

    def processes(self) -> list[int]:
        found = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two machines and a cable; what still runs on them afterwards is ended."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip (iproute2) here")
    mark = f"{os.getpid() % 10000:04d}"
    pair = Host(f"rlhf-a{mark}", "10.199.77.1"), Host(f"rlhf-b{mark}", "10.199.77.2")
    with contextlib.ExitStack() as stack:
        for host in pair:
            try:
                ip("netns", "add", host.name)
            except subprocess.CalledProcessError:
                pytest.skip("no network namespace can be made here")
            stack.callback(ip, "netns", "del", host.name)
            stack.callback(_end, host)
        ip("link", "add", pair[0].cable, "type", "veth", "peer", "name", pair[1].cable)
        for host in pair:
            ip("link", "set", host.cable, "netns", host.name)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            ip("-n", host.name, "link", "set", "lo", "up")
            # deploy/README.md asks for it: torchrun's own talk would hang for a quarter of an hour
            ip("netns", "exec", host.name, "sysctl", "-w", "net.ipv4.tcp_retries2=6")
            host.plug("up")
        yield pair


def _end(host: Host) -> None:
    for pid in host.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not host.processes(), f"{host.name} to be at rest")


def wait_until(is_so, what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert process is None or process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


@pytest.fixture
def config(tmp_path: Path) -> StageConfig:
    """Fine-tuning of a few hundred steps, with a checkpoint every other one."""
    sys.path.insert(0, str(ROOT / "tests" / "traps"))
    try:
        from resuming.world import World
    finally:
        sys.path.pop(0)
    made = World(tmp_path / "home").configs()[STAGE]
    return made.model_copy(update={"num_epochs": 20})


class Shared:
    """The folder that both machines see, and the stage's run in it."""

    def __init__(self, home: Path, config: StageConfig) -> None:
        self.store = Store.open(home)
        self.key = stage_key(STAGE, stage_module(STAGE).VERSION, config)
        self.file = home.parent / "config.json"
        self.file.write_text(config.model_dump_json())

    def checkpoints(self) -> list[str]:
        folder = self.store.work_folder(self.key) / "checkpoints"
        return sorted(path.parent.name for path in folder.glob("*/manifest.json"))

    def steps(self) -> list[int]:
        return [int(row["step"]) for row in read_metrics(self.store, self.key)]


def assert_resumed(shared: Shared, saved: Sequence[str]) -> None:
    """The second attempt has made what the first one lacked, and nothing twice."""
    manifest = shared.store.manifest(shared.key)
    assert manifest is not None
    assert manifest.attempt == 2
    steps = shared.steps()
    assert steps == list(range(steps[0], steps[0] + len(steps))), "none lost, none doubled"
    second = shared.store.attempts(shared.key)[1] / "metrics.jsonl"
    assert len(second.read_text().splitlines()) < len(steps), "it did not begin at the beginning"
    assert saved


def torchrun(host: Host, main: Host, shared: Shared, log: Path) -> subprocess.Popen[bytes]:
    """What an engineer, or a scheduler, starts on each machine."""
    return host.start(
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{main.address}:29400"),
        # torch takes the endpoint for its own only where the machine's name leads to that address
        *("--rdzv-id", "week-3", "--rdzv-conf", f"is_host={int(host is main)}"),
        *("--local-addr", host.address),
        *("-m", f"stages.{STAGE}", "--config", shared.file, "--home", shared.store.home),
        *("--num-threads", "1"),
        log=log,
    )


def test_a_machine_is_cut_off_and_the_same_commands_go_on(
    hosts: tuple[Host, Host], config: StageConfig, tmp_path: Path
):
    shared = Shared(tmp_path / "home", config)
    logs = [tmp_path / f"{host.name}.log" for host in hosts]
    first = [torchrun(h, hosts[0], shared, log) for h, log in zip(hosts, logs, strict=True)]
    wait_until(lambda: len(shared.checkpoints()) >= 2, "two checkpoints", first[0])
    hosts[1].plug("down")
    cut_at = time.monotonic()
    statuses = [process.wait(PATIENCE_SECONDS) for process in first]
    print(f"both ended {time.monotonic() - cut_at:.0f} s after the cut: {statuses}")
    assert all(statuses), "both machines say that it failed"
    assert not hosts[0].processes() + hosts[1].processes()
    assert shared.store.manifest(shared.key) is None
    assert not (shared.store.attempts(shared.key)[0] / "outputs").exists()
    saved = shared.checkpoints()

    hosts[1].plug("up")
    second = [torchrun(h, hosts[0], shared, log) for h, log in zip(hosts, logs, strict=True)]
    assert [process.wait(PATIENCE_SECONDS) for process in second] == [0, 0], logs[0].read_text()
    assert_resumed(shared, saved)
