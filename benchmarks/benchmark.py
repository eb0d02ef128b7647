"""A comparison: what is asked, of whom; and the command line that every benchmark has."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.machine import Device, Machine, describe
from benchmarks.outcome import Outcome, SideOutcome
from benchmarks.report import text_of
from benchmarks.shapes import Floor
from benchmarks.sides import Side, in_turn

DEFAULT_PEERS = Path(".bench/peers")
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Benchmark:
    """One question. The first side is ours, and the others are compared with it."""

    name: str
    question: str
    unit: str
    """What is counted per second. Padding never counts."""
    size: Any
    """The work, handed to every side."""
    sides: tuple[Side, ...]
    laps_per_round: int = 1
    floor: Callable[[Any], Floor] | None = None
    """Arithmetic that each unit costs at least."""
    remarks: str = ""
    """What a reader must know to judge the ratio; ends up in RESULTS.md."""
    on_gpu: Any = None
    """The work of a race on a GPU, in bf16; None where there is none. Targets are for the CPU."""

    def raced_on(self, device: Device) -> "Benchmark | None":
        """This benchmark as it is run on such a device; None where it has no race there."""
        if device == "cpu":
            return self
        if self.on_gpu is None:
            return None
        sides = tuple(replace(side, target=None) for side in self.sides)
        return replace(self, size=self.on_gpu, sides=sides)

    def problems(self, peers: Path) -> list[str]:
        """A paragraph for each peer that is not installed."""
        found = {side.peer.problem(peers) for side in self.sides if side.peer}
        return sorted(found - {""})

    def measure(self, num_rounds: int, machine: Machine, peers: Path) -> Outcome:
        """Run all sides in turn. Raises SideFailedError."""
        rounds = in_turn(
            self.sides,
            self.size,
            num_rounds=num_rounds,
            laps_per_round=self.laps_per_round,
            num_threads=machine.num_threads,
            peers=peers,
            device=machine.device,
        )
        return Outcome(
            name=self.name,
            question=self.question,
            unit=self.unit,
            size=str(self.size),
            remarks=self.remarks,
            amount_per_round=rounds[0][0].amount,
            floor=self.floor(self.size) if self.floor else None,
            sides=[
                SideOutcome.of(side.name, side.settings, side.target, own, rounds[0])
                for side, own in zip(self.sides, rounds, strict=True)
            ],
            machine=machine,
        )


def main(*benchmarks: Benchmark) -> None:
    """Run and print; 2 after one paragraph when a peer is not installed."""
    arguments = _options(sys.modules["__main__"].__doc__).parse_args()
    raced = [b for benchmark in benchmarks if (b := benchmark.raced_on(arguments.device))]
    problems = {p for benchmark in raced for p in benchmark.problems(arguments.peers)}
    if arguments.device == "cuda" and not torch.cuda.is_available():
        problems = {"--device cuda needs an NVIDIA GPU and PyTorch built for CUDA."}
    elif not raced:
        problems = {"This question has no race on a GPU: run it with --device cpu."}
    if problems:
        print(*sorted(problems), sep="\n", file=sys.stderr)
        sys.exit(2)
    machine = describe(arguments.threads, arguments.device)
    for benchmark in raced:
        outcome = benchmark.measure(arguments.rounds, machine, arguments.peers)
        print(text_of(outcome), flush=True)
        if arguments.save is not None:
            arguments.save.mkdir(parents=True, exist_ok=True)
            content = TypeAdapter(Outcome).dump_json(outcome, indent=1)
            (arguments.save / f"{benchmark.name}.json").write_bytes(content)


def _options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=_rounds, default=MIN_ROUNDS, help="measured rounds of each side (3)"
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="cuda: a larger model in bf16, all sides on the GPU (cpu)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    parser.add_argument(
        "--peers", type=Path, default=DEFAULT_PEERS, help=f"folder of the peers ({DEFAULT_PEERS})"
    )
    parser.add_argument("--save", type=Path, help="folder for the outcome as JSON")
    return parser


def _rounds(text: str) -> int:
    value = int(text)
    if value < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"at least {MIN_ROUNDS}: fewer say nothing")
    return value
