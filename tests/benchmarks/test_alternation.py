"""Turns between processes, what is made of the rounds, and what is said when a peer is missing."""

import dataclasses
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from benchmarks.benchmark import Benchmark, main
from benchmarks.machine import Machine
from benchmarks.outcome import Outcome, SideOutcome
from benchmarks.peers import HUGGING_FACE, PPO_TRAINER
from benchmarks.report import markdown, read, text_of
from benchmarks.shapes import Floor
from benchmarks.sides import Side, SideFailedError, in_turn
from benchmarks.turns import Round, Turns

MACHINE = Machine("a machine", "some versions", num_threads=2, flops_per_second=1e9)


def note(turns: Turns, log: Path, name: str) -> None:
    turns.start()
    for _ in range(turns.num_laps):
        start = time.monotonic()
        time.sleep(0.05)
        with log.open("a") as file:
            file.write(json.dumps([name, start, time.monotonic()]) + "\n")
        turns.lap(10)


def first(turns: Turns, log: Path) -> None:
    note(turns, log, "first")


def second(turns: Turns, log: Path) -> None:
    note(turns, log, "second")


def broken(turns: Turns, log: Path) -> None:
    turns.start()
    raise RuntimeError("no such thing")


def test_sides_take_turns_and_the_warm_up_is_dropped(tmp_path: Path):
    log = tmp_path / "log"
    sides = [Side("first", first), Side("second", second)]
    rounds = in_turn(sides, log, num_rounds=3, laps_per_round=2, num_threads=1, peers=tmp_path)
    assert [len(of_side) for of_side in rounds] == [3, 3]
    assert {r.amount for of_side in rounds for r in of_side} == {20}
    laps = [json.loads(line) for line in log.read_text().splitlines()]
    assert [name for name, *_ in laps] == (["first"] * 2 + ["second"] * 2) * 4
    assert all(ended <= began for (_, _, ended), (_, began, _) in pairwise(laps))


def test_a_side_that_fails_is_named_with_its_error(tmp_path: Path):
    with pytest.raises(SideFailedError, match=r"(?s)rotten.*no such thing"):
        in_turn(
            [Side("rotten", broken)],
            tmp_path,
            num_rounds=3,
            laps_per_round=1,
            num_threads=1,
            peers=tmp_path,
        )


def rounds(*rates: float) -> list[Round]:
    return [Round(2.0, 2 * rate, {"MiB": rate}) for rate in rates]


def outcome(name: str = "speed", target: float = 2.0) -> Outcome:
    ours, theirs = rounds(100, 300, 200), rounds(50, 100, 200)
    return Outcome(
        name=name,
        question="How fast?",
        unit="tokens/s",
        size="small",
        remarks="",
        amount_per_round=200,
        floor=Floor(1e6, "all of it"),
        sides=[
            SideOutcome.of("ours", "as it is", None, ours, ours),
            SideOutcome.of("theirs", "as it comes", target, theirs, ours),
        ],
        machine=MACHINE,
    )


def test_a_ratio_is_the_median_of_neighbouring_rounds():
    ours, theirs = outcome().sides
    assert (ours.rate, theirs.rate) == (200, 100)
    assert theirs.ratios == [2, 3, 1]
    assert theirs.ratio == 2
    assert theirs.is_reached
    assert theirs.facts == {"MiB": 100}
    assert outcome().share_of_peak == pytest.approx(200 * 1e6 / 1e9)


def test_the_report_shows_every_ratio_and_marks_a_missed_target(tmp_path: Path):
    adapter = TypeAdapter(Outcome)
    for made in (outcome("reached"), outcome("missed", target=2.5)):
        (tmp_path / f"{made.name}.json").write_bytes(adapter.dump_json(made))
    text = markdown(read(tmp_path))
    assert "| reached | theirs | 200 | 100 tokens/s | 2.00 (1.00–3.00) | 2.00 |" in text
    assert "| missed | theirs | 200 | 100 tokens/s | **2.00 (1.00–3.00)** | 2.50 |" in text
    assert "MiB 100, ours 200% of it" in text
    assert "a machine" in text
    assert "2.00x" in text_of(outcome())


def test_outcomes_of_two_machines_make_no_report():
    elsewhere = dataclasses.replace(
        outcome(), machine=dataclasses.replace(MACHINE, name="another machine")
    )
    with pytest.raises(ValueError, match="make bench"):
        markdown([outcome(), elsewhere])


def test_a_missing_peer_ends_with_2_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sides = (Side("ours", first), Side("theirs", second, peer=PPO_TRAINER))
    benchmark = Benchmark("speed", "How fast?", "tokens/s", tmp_path, sides)
    monkeypatch.setattr(sys, "argv", ["speed", "--peers", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main(benchmark)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "pip install --no-deps --target" in printed
    assert "requirements-trl-1.12.txt" in printed


def test_pins_of_both_peers_differ_in_trl_alone():
    old, new = PPO_TRAINER.pins(), HUGGING_FACE.pins()
    assert (old.pop("trl"), new.pop("trl")) == ("1.12.0", "1.16.0")
    assert old == new
