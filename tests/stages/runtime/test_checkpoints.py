"""Checkpoints: exact, whole or not there, and never unpickled."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_toys.models import build, train

from data_contracts.artifacts import hash_file
from data_contracts.errors import UserError
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.determinism import random_states, restore_random_states, seed_everything
from stages.runtime.distributed import process_group


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
    checkpointer = Checkpointer(tmp_path, rank, every_steps=4)
    step(killed, range(4))
    assert checkpointer.maybe_save(4, killed, {"kl": 0.1})
    seed_everything(6)
    resumed = engines(9)
    assert Checkpointer(tmp_path, rank).restore(resumed) == (4, {"kl": 0.1})
    assert step(resumed, range(4, 8)) == expected
    for name, engine in resumed.items():
        state = straight[name].full_state()
        assert all(torch.equal(v, state[k]) for k, v in engine.full_state().items())


def test_nothing_to_resume(tmp_path: Path) -> None:
    rank = process_group()
    assert Checkpointer(tmp_path / "absent", rank).restore({"a": build(rank)}) == (0, {})


@pytest.fixture
def three_saved(tmp_path: Path) -> Path:
    rank = process_group()
    engine = build(rank)
    checkpointer = Checkpointer(tmp_path, rank, every_steps=1)
    for step in (1, 2, 3):
        checkpointer.maybe_save(step, {"policy": engine})
    return tmp_path


def test_only_the_newest_two_are_kept(three_saved: Path) -> None:
    assert sorted(os.listdir(three_saved)) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    "tear",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"policy/rank-0'),
        lambda folder: (folder / "policy" / "rank-00000.pt").unlink(),
        lambda folder: os.truncate(folder / "policy" / "rank-00000.pt", 1000),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: (folder / "random-00000.pt").write_bytes(b""),
    ],
    ids=["no manifest", "half a manifest", "file gone", "truncated", "state", "empty file"],
)
def test_a_torn_newest_falls_back_to_the_one_before(
    three_saved: Path, tear, caplog: pytest.LogCaptureFixture
) -> None:
    tear(three_saved / "step-00000003")
    rank = process_group()
    assert Checkpointer(three_saved, rank).restore({"policy": build(rank)}).step == 2
    assert "step-00000003 is not whole" in caplog.text


def test_a_kill_while_saving_leaves_the_older_ones(three_saved: Path) -> None:
    rank = process_group()
    unfinished = three_saved / ".unfinished-00000004" / "policy"
    unfinished.mkdir(parents=True)
    (unfinished / "rank-00000.pt").write_bytes(b"half")
    checkpointer = Checkpointer(three_saved, rank, every_steps=5)
    assert checkpointer.restore({"policy": build(rank)}).step == 3
    assert checkpointer.maybe_save(5, {"policy": build(rank)})
    assert sorted(os.listdir(three_saved)) == ["step-00000003", "step-00000005"]


def test_a_pickle_in_place_of_weights_is_not_run(three_saved: Path) -> None:
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(three_saved / "owned"),))

    folder = three_saved / "step-00000003"
    torch.save({"weights": Attack()}, folder / "policy" / "rank-00000.pt")
    digests = json.loads((folder / "manifest.json").read_text())
    digests["policy/rank-00000.pt"] = hash_file(folder / "policy" / "rank-00000.pt")
    (folder / "manifest.json").write_text(json.dumps(digests))
    rank = process_group()
    with pytest.raises(pickle.UnpicklingError):
        Checkpointer(three_saved, rank).restore({"policy": build(rank)})
    assert not (three_saved / "owned").exists()


def test_another_zero_stage_is_refused_with_a_remedy(three_saved: Path) -> None:
    rank = process_group()
    with pytest.raises(UserError, match=r"ZeRO-0.*ZeRO-2.*remove"):
        Checkpointer(three_saved, rank).restore({"policy": build(rank, 2)})


def test_another_number_of_ranks_is_refused_with_a_remedy(three_saved: Path) -> None:
    rank = process_group()
    state = three_saved / "step-00000003" / "state.json"
    content = json.loads(state.read_text()) | {"world_size": 8}
    state.write_text(json.dumps(content))
    manifest = three_saved / "step-00000003" / "manifest.json"
    digests = json.loads(manifest.read_text()) | {"state.json": hash_file(state)}
    manifest.write_text(json.dumps(digests))
    with pytest.raises(UserError, match=r"8 ranks.*1.*remove"):
        Checkpointer(three_saved, rank).restore({"policy": build(rank)})


def test_a_full_disk_is_a_user_error_and_keeps_the_older_ones(
    three_saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = process_group()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    engine = build(rank)
    monkeypatch.setattr(engine, "save", full)
    with pytest.raises(UserError, match=r"No space left.*Free space"):
        Checkpointer(three_saved, rank).save(4, {"policy": engine})
    assert Checkpointer(three_saved, rank).restore({"policy": build(rank)}).step == 3


def test_writing_weights_to_a_full_device_says_so(tmp_path: Path) -> None:
    (tmp_path / "rank-00000.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        build(process_group()).save(tmp_path)


def test_random_states_come_back() -> None:
    seed_everything(3)
    states = random_states()
    first = (torch.rand(2).tolist(), np.random.rand(2).tolist())
    restore_random_states(states)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == first
