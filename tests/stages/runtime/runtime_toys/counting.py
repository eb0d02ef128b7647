"""A stage that trains the toy for a few steps and can be told to fail in many ways."""

import errno
import os
import signal
import time
from pathlib import Path

import torch
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.errors import UserError
from data_contracts.store import attempt_number
from runtime_toys.models import build, train_step
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.settings import CheckpointSettings
from stages.runtime.stage import StageOutput, WorkDir, main

VERSION = "1"


class Config(StageConfig):
    num_steps: int = 6
    inputs: dict[str, list[ArtifactRef]] = {}
    zero_stage: int = Field(0, json_schema_extra={"in_key": False})
    failure: str = Field("", json_schema_extra={"in_key": False})
    fail_at: int = Field(-1, json_schema_extra={"in_key": False})
    fail_rank: int = Field(0, json_schema_extra={"in_key": False})
    num_failures: int = Field(99, json_schema_extra={"in_key": False})
    """How many attempts fail."""
    pause: float = Field(0.0, json_schema_extra={"in_key": False})
    """Seconds that a step takes longer."""
    num_signs: int = Field(0, json_schema_extra={"in_key": False})
    """Signs of progress before the training, a twentieth of a second each."""


def run(config: Config, work: WorkDir) -> StageOutput:
    (work.output("partial") / "half").write_text("written before the failure")
    if config.fail_at == 0:
        fail(config, work)
    for sign in range(config.num_signs):
        time.sleep(0.05)
        work.progress(sign, config.num_signs, "sign")
    engine = build(work.rank, config.zero_stage, seed=config.seed)
    settings = CheckpointSettings(checkpoint_every=2)
    with Checkpointer(work.checkpoints, work.rank, settings) as checkpointer:
        first_step, extra = checkpointer.restore({"policy": engine})
        noise = extra.get("noise", 0.0)
        for step in range(first_step, config.num_steps):
            if step == config.fail_at:
                checkpointer.wait()  # so that a test knows which checkpoint a kill leaves
                fail(config, work)
            time.sleep(config.pause)
            loss = train_step(engine, work.rank, step, [12 // work.rank.world_size])
            noise += torch.rand(()).item()
            work.track(step, {"train/loss": loss, **engine.last_step.as_metrics("train")})
            work.progress(step + 1, config.num_steps, "step", loss=loss)
            checkpointer.maybe_save(step + 1, {"policy": engine}, {"noise": noise})
    folder = work.output("model")
    state = engine.full_state()
    if work.rank.is_main:
        (folder / "weights.bin").write_bytes(b"".join(v.numpy().tobytes() for v in state.values()))
    return StageOutput({"model": (folder, "files")}, {"noise": noise, "resumed": first_step})


def fail(config: Config, work: WorkDir) -> None:
    if work.rank.index != config.fail_rank or attempt_number(work.attempt) > config.num_failures:
        return
    if config.failure == "user":
        raise UserError("The prompts are in Klingon", "Translate them")
    if config.failure == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(Path(work.attempt)))
    if config.failure == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("division by zero")


if __name__ == "__main__":
    main(Config, run)
