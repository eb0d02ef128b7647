"""Checkpoints to resume from: written whole or not at all, checked before use, few kept.

    checkpoints/step-00000100/policy/rank-00000.pt      weights and optimizer state of one rank
                              random-00000.pt           its random generators
                              state.json                step and the caller's own small state
                              manifest.json             sha256 of every file, written last

Nothing here unpickles: torch.load runs with weights_only=True.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_contracts.artifacts import file_names, hash_file
from data_contracts.durable import disk_error, sync_file, sync_folder, write_durably
from data_contracts.errors import UserError
from stages.runtime.determinism import random_states, restore_random_states
from stages.runtime.distributed import Rank
from stages.runtime.engine import Engine

LOG = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_STATE = "state.json"
_UNFINISHED = ".unfinished-"


class Resumed(NamedTuple):
    """Where to go on: (0, {}) when there is nothing to resume."""

    step: int
    extra: dict[str, Any]


class Checkpointer:
    """Checkpoints of one stage's engines in one folder. All ranks make the same calls."""

    def __init__(self, folder: Path, rank: Rank, every_steps: int = 100, keep: int = 2) -> None:
        """`keep` newest stay: should the newest be torn, the one before it is used."""
        self._folder = folder
        self._rank = rank
        self._every_steps = every_steps
        self._keep = keep

    def restore(self, engines: Mapping[str, Engine]) -> Resumed:
        """Load the newest whole checkpoint into the engines and the random generators.

        A torn one is passed over with a message. Raises UserError when the checkpoint was written
        by another number of ranks or another ZeRO stage.
        """
        for name in self._rank.broadcast_object(self._newest_first()):
            folder = self._folder / name
            problems = [p for p in self._rank.gather_objects(_problem(folder, self._rank)) if p]
            if not problems:
                return self._load(folder, engines)
            if self._rank.is_main:
                LOG.warning(
                    "Checkpoint %s is not whole (%s): trying the one before", folder, problems[0]
                )
        return Resumed(0, {})

    def maybe_save(
        self, step: int, engines: Mapping[str, Engine], extra: Mapping[str, Any] | None = None
    ) -> bool:
        """Save after every `every_steps` steps; `step` counts the steps that are done.

        `extra` is JSON: controllers, sampler positions, running statistics of rank 0.
        """
        if step % self._every_steps:
            return False
        self.save(step, engines, extra)
        return True

    def save(
        self, step: int, engines: Mapping[str, Engine], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Save now. Raises UserError when the disk is full; the older checkpoints stay."""
        unfinished = self._folder / f"{_UNFINISHED}{step:08d}"
        try:
            self._write(unfinished, step, engines, extra or {})
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)  # whoever explains this needs some space
            raise disk_error("write the checkpoint", unfinished, error) from error

    def _write(
        self, unfinished: Path, step: int, engines: Mapping[str, Engine], extra: Mapping[str, Any]
    ) -> None:
        if self._rank.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            for name in engines:
                (unfinished / name).mkdir(parents=True)
        self._rank.barrier()
        for name, engine in engines.items():
            engine.save(unfinished / name)
        with (unfinished / _random_file(self._rank)).open("wb") as file:
            torch.save(random_states(), file)
        if self._rank.is_main:
            state = {"step": step, "world_size": self._rank.world_size, "extra": dict(extra)}
            (unfinished / _STATE).write_text(json.dumps(state))
        shares = self._rank.gather_objects(_hashed(unfinished, self._rank))
        if self._rank.is_main:
            self._finish(
                unfinished, step, {name: d for share in shares for name, d in share.items()}
            )
        self._rank.barrier()

    def _finish(self, unfinished: Path, step: int, digests: dict[str, str]) -> None:
        write_durably(unfinished / _MANIFEST, json.dumps(digests, indent=1).encode())
        target = self._folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)  # of an older attempt, past a torn newest
        os.replace(unfinished, target)
        sync_folder(self._folder)
        for name in self._newest_first()[self._keep :]:
            shutil.rmtree(self._folder / name)
        for leftover in self._folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)

    def _newest_first(self) -> list[str]:
        return sorted((p.name for p in self._folder.glob("step-*")), reverse=True)

    def _load(self, folder: Path, engines: Mapping[str, Engine]) -> Resumed:
        state = json.loads((folder / _STATE).read_text())
        if state["world_size"] != self._rank.world_size:
            raise UserError(
                f"{folder} was saved by {state['world_size']} ranks, this run has "
                f"{self._rank.world_size}",
                f"Resume with as many ranks, or remove {self._folder} to start over",
            )
        for name, engine in engines.items():
            engine.load(folder / name)
        random = torch.load(folder / _random_file(self._rank), weights_only=True)
        restore_random_states(random)
        if self._rank.is_main:
            LOG.info("Resuming after step %d from %s", state["step"], folder)
        return Resumed(state["step"], state["extra"])


def _random_file(rank: Rank) -> str:
    return f"random-{rank.index:05d}.pt"


def _own_files(names: list[str], rank: Rank) -> list[str]:
    """The files this rank wrote and reads; what carries no rank's number is rank 0's."""
    own = f"-{rank.index:05d}.pt"
    return [n for n in names if n.endswith(own) or (rank.is_main and not n.endswith(".pt"))]


def _hashed(folder: Path, rank: Rank) -> dict[str, str]:
    """sha256 by relative path of this rank's files, which are on the disk when this returns."""
    names = _own_files(file_names(folder), rank)
    for name in names:
        sync_file(folder / name)
    return {name: hash_file(folder / name) for name in names}


def _problem(folder: Path, rank: Rank) -> str:
    """What is wrong with this rank's part of a checkpoint, or ""."""
    try:
        digests = json.loads((folder / _MANIFEST).read_text())
        for name in _own_files(list(digests), rank):
            if hash_file(folder / name) != digests[name]:
                return f"{name} is not the file that was written"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
