"""What two ranks find out, written as JSON by rank 0: torchrun -m runtime_toys.ranks FOLDER."""

import gc
import hashlib
import json
import os
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch

from data_contracts.errors import UserError
from runtime_toys.llama import MODES, train_llama
from runtime_toys.models import NUM_STEPS, ROWS, Toy, batch, build, train
from stages.runtime import settings
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.determinism import seed_everything
from stages.runtime.distributed import Rank, leave_process_group, process_group
from stages.runtime.engine import DivergedError, Engine, EngineSettings, frozen
from stages.runtime.settings import CheckpointSettings

Findings = dict[str, Any]


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    rank = process_group()
    findings = {"messages": messages(rank)}
    for zero_stage in (0, 1, 2, 3):
        findings[f"zero-{zero_stage}"] = curves(rank, zero_stage)
    for zero_stage in (1, 2, 3):
        findings[f"zero-{zero_stage}-bf16"] = curves(rank, zero_stage, "bf16")
    findings["masters"] = {str(stage): masters(rank, stage) for stage in (1, 2, 3)}
    findings["set"] = set_weights(rank)
    findings["interrupted"] = interrupted(rank)
    findings["skipped"] = {str(stage): skipped(rank, stage) for stage in (0, 1, 2, 3)}
    findings["diverged"] = {str(stage): diverged(rank, stage) for stage in (0, 1, 2, 3)}
    findings["resume"] = {str(stage): resume(rank, stage, folder) for stage in (0, 1, 2, 3)}
    settings._PERSISTENT_ELEMENTS = 0  # or ZeRO-3 would keep all of the small model everywhere
    findings["reshaped"] = reshaped(rank, folder)
    findings["offloaded"] = {str(stage): offloaded(rank, stage, folder) for stage in (1, 2, 3)}
    findings["from_one_rank"] = from_one_rank(rank, folder)
    findings["for_one_rank"] = for_one_rank(rank, folder)
    findings["unwritten"] = unwritten(rank, folder)
    findings["llama"] = {
        f"{mode}-{stage}": train_llama(rank, stage, mode) for mode in MODES for stage in (2, 3)
    }
    findings["digest"] = digest(rank)
    findings["uneven"] = uneven(rank)
    findings["frozen"] = frozen_losses(rank)
    findings["frozen_left"] = frozen_left(rank)
    if rank.is_main:
        (folder / "findings.json").write_text(json.dumps(findings))
    leave_process_group()


def messages(rank: Rank) -> Findings:
    rank.barrier()
    return {
        "sum": rank.sum(rank.index + 0.5),
        "tensor": rank.sum(torch.tensor([1, rank.index])).tolist(),
        "max": rank.max(float(rank.index)),
        "broadcast": rank.broadcast_object({"from": rank.index}),
        "gather": rank.gather_objects("ab"[rank.index]),
    }


def curves(rank: Rank, zero_stage: int, precision: str = "fp32") -> Findings:
    engine = build(rank, zero_stage, precision)
    losses = train(engine, rank, range(NUM_STEPS), [6])
    split = build(rank, zero_stage, precision)
    split_losses = train(split, rank, range(NUM_STEPS), [1, 3, 2])
    tokens, targets = batch(99)
    with torch.no_grad(), split.gathered() as plain:
        stale = plain(tokens, targets).losses - split(tokens, targets).losses
        left = weakref.ref(next(plain.parameters()))
        is_twin = plain is not split.module
        del plain
    return {
        "losses": losses,
        "split_losses": split_losses,
        "state": {name: value.double().sum().item() for name, value in split.full_state().items()},
        "gathered_is_freed": left() is None or not is_twin,
        "gathered_error": rank.max(stale.abs().max().item()),
        "sharded": any(p.numel() == 0 for p in engine.module.parameters()),
        "gradient_norm": engine.last_step.gradient_norm,
    }


def masters(rank: Rank, zero_stage: int) -> bool:
    """Whether bf16 starts from rank 0's exact fp32 weights."""
    state = build(rank, zero_stage, "bf16", seed=rank.index).full_state()
    exact = Toy().state_dict()
    return all(torch.equal(value, exact[name]) for name, value in state.items())


def set_weights(rank: Rank) -> list[float]:
    """Losses after rank 0 has replaced the weights of a sharded module."""
    engine = build(rank, 3, seed=1)
    engine.load_full_state(Toy().state_dict() if rank.is_main else {})
    return train(engine, rank, range(3), [6])


def interrupted(rank: Rank) -> float:
    """Loss at step 1 where step 0 evaluated between its forward and backward passes."""
    engine = build(rank, 3)
    tokens, targets = (part[rank.index :: 2] for part in batch(0))
    for rows, last in ((slice(0, 2), False), (slice(2, 6), True)):
        loss = engine(tokens[rows], targets[rows]).losses.sum() / ROWS
        with torch.no_grad():
            engine(*batch(5))
        engine.backward(loss, last=last)
        with torch.no_grad():
            engine(*batch(6))
    engine.step()
    return train(engine, rank, range(1, 2), [6])[0]


def poisoned(rank: Rank, engine: Engine, step: int, factor: float) -> None:
    """One step of which rank 1's second micro-batch has its loss multiplied."""
    tokens, targets = (part[rank.index :: 2] for part in batch(step))
    for i, rows in enumerate((slice(0, 3), slice(3, 6))):
        loss = engine(tokens[rows], targets[rows]).losses.sum() / ROWS
        if (rank.index, i) == (1, 1):
            loss = loss * factor
        engine.backward(loss, i == 1, [f"row-{rank.index}-{i}"])
    engine.step()


def skipped(rank: Rank, zero_stage: int) -> Findings:
    """One step in four is poisoned: on both ranks it must leave no trace but a count."""
    engine, clean = build(rank, zero_stage), build(rank, zero_stage)
    for step in range(3):
        poisoned(rank, engine, step, 1.0)
        poisoned(rank, clean, step, 1.0)
    before = engine.full_state()
    poisoned(rank, engine, 3, float("nan"))
    after = engine.full_state()
    same = all(torch.equal(after[name], value) for name, value in before.items())
    clean.num_steps += 1  # the schedule goes by the data
    losses = [train(e, rank, range(4, 6), [6]) for e in (engine, clean)]
    return {
        "untouched": same,
        "as_if_it_had_not_been": losses[0] == losses[1],
        "counted": rank.gather_objects(engine.last_step.num_skipped),
    }


def diverged(rank: Rank, zero_stage: int) -> list[str]:
    """What every rank says after one skipped step too many."""
    engine = build(rank, zero_stage, max_skipped_in_a_row=1)
    poisoned(rank, engine, 0, float("inf"))
    try:
        poisoned(rank, engine, 1, float("inf"))
    except DivergedError as error:
        return rank.gather_objects(error.problem)
    return []


def resume(rank: Rank, zero_stage: int, folder: Path) -> bool:
    """Whether 3 steps, a new engine and 3 more equal 6 steps bit by bit."""
    seed_everything(0)
    straight = build(rank, zero_stage)
    expected = [*train(straight, rank, range(6), [6]), torch.rand(()).item()]
    seed_everything(0)
    first = build(rank, zero_stage)
    place = folder / f"checkpoints-{zero_stage}"
    with Checkpointer(place, rank, CheckpointSettings(checkpoint_every=3)) as checkpointer:
        losses = train(first, rank, range(3), [6])
        checkpointer.maybe_save(3, {"policy": first}, {"beta": 0.25})
    seed_everything(1)
    second = build(rank, zero_stage, seed=7)
    step, extra = checkpointer.restore({"policy": second})
    losses += [*train(second, rank, range(step, 6), [6]), torch.rand(()).item()]
    states = (second.full_state(), straight.full_state())
    same = all(torch.equal(states[0][name], value) for name, value in states[1].items())
    return losses == expected and same and (step, extra) == (3, {"beta": 0.25})


def reshaped(rank: Rank, folder: Path) -> Findings:
    """Weights and next losses where one ZeRO stage goes on from what another wrote."""
    found = {}
    for precision in ("fp32", "bf16"):
        for saved, loaded in ((0, 3), (3, 2), (2, 1), (1, 0)):
            engine = build(rank, saved, precision)
            train(engine, rank, range(3), [6])
            place = folder / f"reshaped-{precision}-{saved}-{loaded}"
            with Checkpointer(place, rank) as checkpointer:
                checkpointer.save(3, {"policy": engine})
            other = build(rank, loaded, precision, seed=7)
            checkpointer.restore({"policy": other})
            states = other.full_state(), engine.full_state()
            found[f"{precision} {saved} to {loaded}"] = {
                "equal": all(torch.equal(states[0][n], value) for n, value in states[1].items()),
                "losses": train(other, rank, range(3, 6), [6]),
                "expected": train(engine, rank, range(3, 6), [6]),
            }
    return found


def offloaded(rank: Rank, zero_stage: int, folder: Path) -> Findings:
    """Optimizer state on the host: losses, one step that is skipped, and a resume."""
    engine = build(rank, zero_stage, offload_optimizer=True)
    losses = train(engine, rank, range(3), [6])
    poisoned(rank, engine, 3, float("nan"))
    place = folder / f"offloaded-{zero_stage}"
    with Checkpointer(place, rank) as checkpointer:
        checkpointer.save(4, {"policy": engine})
    other = build(rank, zero_stage, seed=7, offload_optimizer=True)
    checkpointer.restore({"policy": other})
    on_device = build(rank, 0, seed=7)
    checkpointer.restore({"policy": on_device})
    return {
        "losses": losses,
        "going_on": [train(e, rank, range(4, 6), [6]) for e in (engine, other, on_device)],
        "skipped": on_device.last_step.num_skipped,
    }


def from_one_rank(rank: Rank, folder: Path) -> Findings:
    """Losses of two ranks that go on from what one has written."""
    losses = {}
    for zero_stage in (0, 1, 2, 3):
        engine = build(rank, zero_stage, seed=7)
        Checkpointer(folder / "one_rank", rank).restore({"policy": engine})
        losses[str(zero_stage)] = train(engine, rank, range(3, 6), [6])
    return losses


def for_one_rank(rank: Rank, folder: Path) -> list[float]:
    """A checkpoint by two ranks for a test to read, and the losses of going on with it here."""
    engine = build(rank, 3)
    train(engine, rank, range(3), [6])
    with Checkpointer(folder / "two_ranks", rank) as checkpointer:
        checkpointer.save(3, {"policy": engine})
    return train(engine, rank, range(3, 6), [6])


def unwritten(rank: Rank, folder: Path) -> list[str]:
    """What every rank says when rank 1 could not write its part."""
    place = folder / "unwritten"
    engine = build(rank, 2)
    if rank.index == 1:  # a file where its folder should be
        (place / ".unfinished-00000001").mkdir(parents=True)
        (place / ".unfinished-00000001" / "policy").write_text("")
    rank.barrier()
    try:
        with Checkpointer(place, rank) as checkpointer:
            checkpointer.save(1, {"policy": engine})
    except UserError as error:
        return [*rank.gather_objects(error.problem), *os.listdir(place)]
    return []


def digest(rank: Rank) -> str:
    """Of the weights after the training that the stage `counting` does with seed 4."""
    engine = build(rank, 2, seed=4)
    train(engine, rank, range(6), [6])
    return hashlib.sha256(
        b"".join(value.numpy().tobytes() for value in engine.full_state().values())
    ).hexdigest()


def uneven(rank: Rank) -> list[float]:
    """Rank 1 has rows for one micro-batch, rank 0 for two: an empty share keeps them in step."""
    results = []
    for zero_stage in (0, 2, 3):
        engine = build(rank, zero_stage)
        tokens, targets = batch(0)
        mine = slice(0, 8) if rank.index == 0 else slice(8, 12)
        pieces = list(zip(tokens[mine].split(4), targets[mine].split(4), strict=True))
        for i in range(int(rank.max(len(pieces)))):
            real = i < len(pieces)
            loss = engine(*pieces[i if real else 0]).losses.sum() / ROWS
            engine.backward(loss if real else loss * 0, last=i == 1)
        results.append(engine.step().gradient_norm)
    return results


def frozen_losses(rank: Rank) -> list[float]:
    """Loss of a sharded frozen module, and of the module itself."""
    module = frozen(Toy(), EngineSettings(zero_stage=3), rank)
    sharded = module(*batch(0)).losses.sum().item()
    return [sharded, Toy()(*batch(0)).losses.sum().item()]


def frozen_left(rank: Rank) -> int:
    """How many of three sharded frozen modules are still there once nobody holds them."""
    left = []
    for _ in range(3):
        module = frozen(Toy(), EngineSettings(zero_stage=3), rank)
        module(*batch(0))
        left.append(weakref.ref(next(module.module.parameters())))
        del module
    gc.collect()
    return sum(weights() is not None for weights in left)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
