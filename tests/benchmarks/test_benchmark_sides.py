"""Each side of each benchmark does its work at a tiny size, and counts what it says it counts."""

import dataclasses
from pathlib import Path

import pytest
from tiny_sizes import BENCHMARKS, SIZES

from benchmarks.benchmark import DEFAULT_PEERS
from benchmarks.machine import Machine
from benchmarks.sides import Side
from benchmarks.turns import Round, Turns

NUM_ROUNDS = 2
AMOUNTS = {
    "pretrain": 2 * 32,
    "zero": 2 * 32,
    "generation-fixed": 4 * 8,
    "loss-mean": 20,
    "loss-logprobs": 20,
    "attention": 16,
    "validation": 50,
}
"""Where every lap is the same."""

INSTALLED = [
    pytest.param(name, side, id=f"{name}: {side.name}")
    for name, benchmark in BENCHMARKS.items()
    for side in benchmark.sides
    if side.peer is None
]


def rounds_of(side: Side, size: object) -> list[Round]:
    rounds: list[Round] = []
    side.run(Turns(NUM_ROUNDS, 1, wait=lambda: None, report=rounds.append), size)
    return rounds


def own_process(name: str, side: Side) -> bool:
    return name == "zero" and "two processes" in side.name


@pytest.mark.parametrize(("name", "side"), [p for p in INSTALLED if not own_process(*p.values)])
def test_a_side_makes_every_lap_and_counts_its_work(name: str, side: Side):
    rounds = rounds_of(side, SIZES[name])
    assert len(rounds) == 1 + NUM_ROUNDS
    assert all(r.seconds > 0 and r.amount > 0 for r in rounds)
    if name in AMOUNTS:
        assert {r.amount for r in rounds} == {AMOUNTS[name]}


def test_losses_of_one_benchmark_agree():
    for name in ("loss-mean", "loss-logprobs"):
        losses = [rounds_of(side, SIZES[name])[0].facts["loss"] for side in BENCHMARKS[name].sides]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_all_sides_run_in_turn(name: str):
    benchmark = dataclasses.replace(BENCHMARKS[name], size=SIZES[name], laps_per_round=1)
    problems = benchmark.problems(DEFAULT_PEERS)
    if problems:
        pytest.skip(problems[0])
    machine = Machine("here", "these", num_threads=1, flops_per_second=1e9)
    outcome = benchmark.measure(NUM_ROUNDS, machine, Path(DEFAULT_PEERS))
    assert [side.name for side in outcome.sides] == [side.name for side in benchmark.sides]
    assert all(len(side.ratios) == NUM_ROUNDS and min(side.rates) > 0 for side in outcome.sides)
