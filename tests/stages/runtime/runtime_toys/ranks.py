"""What two ranks find out, written as JSON by rank 0: torchrun -m runtime_toys.ranks FOLDER."""

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from runtime_toys.llama import MODES, train_llama
from runtime_toys.models import NUM_STEPS, ROWS, Toy, batch, build, train
from stages.runtime import settings
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.determinism import seed_everything
from stages.runtime.distributed import Rank, leave_process_group, process_group
from stages.runtime.engine import DivergedError, EngineSettings, frozen

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
    findings["diverged"] = diverged(rank)
    findings["resume"] = {str(stage): resume(rank, stage, folder) for stage in (0, 2, 3)}
    settings._PERSISTENT_ELEMENTS = 0  # or ZeRO-3 would keep all of the small model everywhere
    findings["llama"] = {
        f"{mode}-{stage}": train_llama(rank, stage, mode) for mode in MODES for stage in (2, 3)
    }
    findings["digest"] = digest(rank)
    findings["uneven"] = uneven(rank)
    findings["frozen"] = frozen_losses(rank)
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
    plain = split.plain_copy()
    tokens, targets = batch(99)
    with torch.no_grad():
        stale = plain(tokens, targets).losses - split(tokens, targets).losses
    return {
        "losses": losses,
        "split_losses": split_losses,
        "state": {name: value.double().sum().item() for name, value in split.full_state().items()},
        "plain_copy_error": rank.max(stale.abs().max().item()),
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


def diverged(rank: Rank) -> list[str]:
    found = []
    for zero_stage in (0, 1, 2, 3):
        engine = build(rank, zero_stage)
        tokens, targets = batch(0)
        weight = float("inf") if rank.index == 1 else 1.0
        engine.backward(engine(tokens, targets).losses.mean() * weight, last=True)
        try:
            engine.step()
        except DivergedError as error:
            found.append(error.problem)
    return found


def resume(rank: Rank, zero_stage: int, folder: Path) -> bool:
    """Whether 3 steps, a new engine and 3 more equal 6 steps bit by bit."""
    seed_everything(0)
    straight = build(rank, zero_stage)
    expected = [*train(straight, rank, range(6), [6]), torch.rand(()).item()]
    seed_everything(0)
    first = build(rank, zero_stage)
    checkpointer = Checkpointer(folder / f"checkpoints-{zero_stage}", rank, every_steps=3)
    losses = train(first, rank, range(3), [6])
    checkpointer.maybe_save(3, {"policy": first}, {"beta": 0.25})
    seed_everything(1)
    second = build(rank, zero_stage, seed=7)
    step, extra = checkpointer.restore({"policy": second})
    losses += [*train(second, rank, range(step, 6), [6]), torch.rand(()).item()]
    states = (second.full_state(), straight.full_state())
    same = all(torch.equal(states[0][name], value) for name, value in states[1].items())
    return losses == expected and same and (step, extra) == (3, {"beta": 0.25})


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
