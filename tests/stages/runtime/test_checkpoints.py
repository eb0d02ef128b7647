"""Checkpoints: exact, whole or not there, written beside the training, and never unpickled."""

import errno
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_toys.models import build, train

from data_contracts.artifacts import hash_file
from data_contracts.errors import UserError
from stages.runtime import checkpoints
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.determinism import random_states, restore_random_states, seed_everything
from stages.runtime.distributed import process_group
from stages.runtime.settings import CheckpointSettings

EVERY = CheckpointSettings(checkpoint_every=1)


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (2, "fp32"), (2, "bf16")]
)
def test_resuming_is_bitwise_for_two_engines_and_the_generators(
    tmp_path: Path, zero_stage: int, precision: str
) -> None:
    rank = process_group()

    def engines(seed: int) -> dict:
        return {
            "policy": build(rank, zero_stage, precision, seed=seed),
            "value": build(rank, zero_stage, precision, seed=seed + 1),
        }

    def step(pair: dict, steps: range) -> list:
        losses = [train(engine, rank, steps, [5, 7]) for engine in pair.values()]
        return [losses, torch.rand(3).tolist(), np.random.rand(), pair["policy"].num_steps]

    seed_everything(5)
    straight = engines(0)
    step(straight, range(4))
    expected = step(straight, range(4, 8))

    seed_everything(5)
    killed = engines(0)
    with Checkpointer(tmp_path, rank, CheckpointSettings(checkpoint_every=4)) as checkpointer:
        step(killed, range(4))
        assert checkpointer.maybe_save(4, killed, {"kl": 0.1})
    seed_everything(6)
    resumed = engines(9)
    assert Checkpointer(tmp_path, rank).restore(resumed) == (4, {"kl": 0.1})
    assert step(resumed, range(4, 8)) == expected
    for name, engine in resumed.items():
        state = straight[name].full_state()
        assert all(torch.equal(v, state[k]) for k, v in engine.full_state().items())


@pytest.mark.parametrize(("saved", "loaded"), [(0, 2), (2, 0), (1, 2)])
def test_another_zero_stage_goes_on_from_the_same_weights(
    tmp_path: Path, saved: int, loaded: int
) -> None:
    rank = process_group()
    engine, other = build(rank, saved), build(rank, loaded, seed=7)
    train(engine, rank, range(3), [12])
    with Checkpointer(tmp_path, rank) as checkpointer:
        checkpointer.save(3, {"policy": engine})
    checkpointer.restore({"policy": other})
    state = other.full_state()
    assert all(torch.equal(state[name], value) for name, value in engine.full_state().items())
    expected = train(engine, rank, range(3, 6), [12])
    assert train(other, rank, range(3, 6), [12]) == pytest.approx(expected, abs=1e-5)


def test_an_engine_that_has_not_trained_yet_can_be_saved(tmp_path: Path) -> None:
    rank = process_group()
    engine = build(rank, 2)
    with Checkpointer(tmp_path, rank) as checkpointer:
        checkpointer.save(0, {"policy": engine})
    other = build(rank, 2, seed=7)
    checkpointer.restore({"policy": other})
    assert train(other, rank, range(3), [12]) == train(engine, rank, range(3), [12])


def test_skipped_steps_are_counted_over_a_resume(tmp_path: Path) -> None:
    rank = process_group()
    engine = build(rank)
    train(engine, rank, range(2), [12])
    engine.backward(sum(p.sum() for p in engine.module.parameters()) * torch.nan, last=True)
    engine.step()
    with Checkpointer(tmp_path, rank) as checkpointer:
        checkpointer.save(3, {"policy": engine})
    other = build(rank)
    checkpointer.restore({"policy": other})
    assert other.num_steps == 3
    train(other, rank, range(3, 4), [12])
    assert other.last_step.num_skipped == 1


def test_nothing_to_resume(tmp_path: Path) -> None:
    rank = process_group()
    assert Checkpointer(tmp_path / "absent", rank).restore({"a": build(rank)}) == (0, {})


@pytest.fixture
def three_saved(tmp_path: Path) -> Path:
    rank = process_group()
    engine = build(rank)
    with Checkpointer(tmp_path, rank, EVERY) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.maybe_save(step, {"policy": engine})
    return tmp_path


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_are_kept_as_configured(tmp_path: Path, keep: int) -> None:
    rank = process_group()
    engine = build(rank)
    settings = CheckpointSettings(checkpoint_every=2, keep_checkpoints=keep)
    with Checkpointer(tmp_path, rank, settings) as checkpointer:
        saved = [checkpointer.maybe_save(step, {"policy": engine}) for step in range(1, 9)]
    assert saved == [False, True] * 4
    assert checkpointer.steps() == [2, 4, 6, 8][-keep:]


@pytest.mark.parametrize(
    "tear",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"files": {"policy/ran'),
        lambda folder: (folder / "manifest.json").write_text('{"policy/rank-00000.pt": "ab"}'),
        lambda folder: (folder / "policy" / "rank-00000.safetensors").unlink(),
        lambda folder: os.truncate(folder / "policy" / "rank-00000.safetensors", 1000),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: (folder / "random-00000.pt").write_bytes(b""),
    ],
    ids=["no manifest", "half of it", "older format", "gone", "truncated", "state", "empty file"],
)
def test_a_torn_newest_falls_back_to_the_one_before(
    three_saved: Path, tear: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    tear(three_saved / "step-00000003")
    rank = process_group()
    with Checkpointer(three_saved, rank, EVERY) as checkpointer:
        engine = build(rank)
        assert checkpointer.restore({"policy": engine}).step == 2
        assert "step-00000003 is not whole" in caplog.text
        checkpointer.save(4, {"policy": engine})
    assert checkpointer.steps() == [2, 4]  # the torn one is not one of the two to keep


def test_a_kill_while_saving_leaves_the_older_ones(three_saved: Path) -> None:
    rank = process_group()
    unfinished = three_saved / ".unfinished-00000004" / "policy"
    unfinished.mkdir(parents=True)
    (unfinished / "rank-00000.safetensors").write_bytes(b"half")
    with Checkpointer(three_saved, rank, EVERY) as checkpointer:
        assert checkpointer.restore({"policy": build(rank)}).step == 3
        assert checkpointer.maybe_save(5, {"policy": build(rank)})
    assert sorted(os.listdir(three_saved)) == ["step-00000003", "step-00000005"]


def test_a_pickle_in_place_of_random_states_is_not_run(three_saved: Path) -> None:
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(three_saved / "owned"),))

    folder = three_saved / "step-00000003"
    torch.save({"torch": Attack()}, folder / "random-00000.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["random-00000.pt"] = hash_file(folder / "random-00000.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rank = process_group()
    with pytest.raises(pickle.UnpicklingError):
        Checkpointer(three_saved, rank).restore({"policy": build(rank)})
    assert not (three_saved / "owned").exists()


class SlowDisk:
    """Holds the writing thread back until `release` is called."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()
        self.release = self._released.set

    def write(self, path: Path, pieces: dict[str, torch.Tensor]) -> str:
        self.reached.set()
        assert self._released.wait(30)
        return _write_pieces(path, pieces)


_write_pieces = checkpoints.write_pieces


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(checkpoints, "write_pieces", disk.write)
    yield disk
    disk.release()


def test_training_goes_on_while_the_state_of_the_save_is_written(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    rank = process_group()
    engine = build(rank, 2)
    train(engine, rank, range(2), [12])
    expected = engine.full_state()
    with Checkpointer(tmp_path, rank) as checkpointer:
        checkpointer.save(2, {"policy": engine})
        assert slow_disk.reached.wait(30)
        train(engine, rank, range(2, 4), [12])
        slow_disk.release()
    other = build(rank, 2)
    assert checkpointer.restore({"policy": other}).step == 2
    state = other.full_state()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_what_is_still_being_written_is_not_believed(
    three_saved: Path, slow_disk: SlowDisk
) -> None:
    rank = process_group()
    with Checkpointer(three_saved, rank) as checkpointer:
        checkpointer.save(4, {"policy": build(rank)})
        assert slow_disk.reached.wait(30)
        assert checkpointer.steps() == [2, 3]
        slow_disk.release()
    assert checkpointer.steps() == [3, 4]


def full_disk(path: Path, pieces: dict[str, torch.Tensor]) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("later", ["maybe_save", "save", "wait", "end"])
def test_a_full_disk_is_told_at_the_next_call_and_the_older_ones_stay(
    three_saved: Path, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    rank = process_group()
    engines = {"policy": build(rank)}

    def save_and_go_on() -> None:
        with Checkpointer(three_saved, rank) as checkpointer:
            checkpointer.save(4, engines)
            assert checkpointer._pending is not None
            checkpointer._pending.exception(30)
            if later == "wait":
                checkpointer.wait()
            elif later != "end":
                getattr(checkpointer, later)(5, engines)
            assert later == "end"

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_pieces", full_disk)
        with pytest.raises(UserError, match=r"No space left.*Free space"):
            save_and_go_on()
    assert sorted(os.listdir(three_saved)) == ["step-00000002", "step-00000003"]
    assert Checkpointer(three_saved, rank).restore(engines).step == 3


def save_and_fail(folder: Path) -> None:
    rank = process_group()
    with Checkpointer(folder, rank) as checkpointer:
        checkpointer.save(1, {"policy": build(rank)})
        raise ZeroDivisionError


def test_a_checkpoint_that_failed_does_not_hide_the_error_that_ended_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "write_pieces", full_disk)
    with pytest.raises(ZeroDivisionError):
        save_and_fail(tmp_path)
    assert "No space left" in caplog.text


def test_what_is_pending_is_still_written_when_the_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        save_and_fail(tmp_path)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_random_states_come_back() -> None:
    seed_everything(3)
    states = random_states()
    first = (torch.rand(2).tolist(), np.random.rand(2).tolist())
    restore_random_states(states)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == first
