"""Checkpoints to resume from: written whole or not at all, checked before use, few kept.

    checkpoints/step-00000100/policy/rank-00000.safetensors   pieces of weights and optimizer state
                              random-00000.pt                 one rank's random generators
                              state.json                      steps, counters, the caller's state
                              manifest.json                   sha256 of every file, written last

Any number of ranks at any ZeRO stage resumes from what any other has written; as many ranks at the
same stage go on bit by bit. The training waits for a copy in host memory only: a thread writes it,
tells the other ranks', and a checkpoint without its manifest does not exist.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from data_contracts.artifacts import hash_all, hash_file
from data_contracts.durable import disk_error, sync_file, sync_folder, write_durably
from data_contracts.errors import UserError
from stages.runtime import stopping
from stages.runtime.determinism import random_states, restore_random_states
from stages.runtime.distributed import Rank
from stages.runtime.engine import Engine
from stages.runtime.host_copies import HostCopies
from stages.runtime.settings import CheckpointSettings
from stages.runtime.tensor_files import PieceReader, write_pieces

LOG = logging.getLogger(__name__)
_FORMAT = "fragments-1"
_MANIFEST = "manifest.json"
_STATE = "state.json"
_UNFINISHED = ".unfinished-"


class Resumed(NamedTuple):
    """Where to go on: (0, {}) when there is nothing to resume."""

    step: int
    extra: dict[str, Any]


class _Content(NamedTuple):
    """What one rank writes of one checkpoint; nothing in it changes while the training goes on."""

    step: int
    pieces: dict[str, dict[str, torch.Tensor]]
    random: dict[str, Any]
    state: dict[str, Any]


class Checkpointer:
    """Checkpoints of one stage's engines in one folder. All ranks make the same calls.

    To be used in a `with` block, whose end waits for what is still being written. A checkpoint that
    could not be written raises UserError at one of the next calls; the older ones stay.
    """

    def __init__(
        self, folder: Path, rank: Rank, settings: CheckpointSettings | None = None
    ) -> None:
        self._folder = folder
        self._rank = rank
        self._settings = settings or CheckpointSettings()
        self._channel = rank.beside()
        self._copies = HostCopies()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpointer":
        if self._rank.is_main:
            stopping.mark_open(self._folder.parent, True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as unwritten:
            if error is None:
                raise
            LOG.warning("The last checkpoint could not be written: %s", unwritten)
        finally:
            self._writer.shutdown()
            if self._rank.is_main:
                stopping.mark_open(self._folder.parent, False)

    def restore(self, engines: Mapping[str, Engine]) -> Resumed:
        """Load the newest whole checkpoint into the engines and the random generators.

        A torn one is removed with a message, and the one before it is used.
        """
        self.wait()
        names = self._tidied() if self._rank.is_main else []
        for name in self._rank.broadcast_object(names):
            folder = self._folder / name
            own = fault_of_checkpoint(folder, self._rank.index, self._rank.world_size)
            problems = [p for p in self._rank.gather_objects(own) if p]
            if not problems:
                return self._load(folder, engines)
            if self._rank.is_main:
                LOG.warning(
                    "Checkpoint %s is not whole (%s): trying the one before", folder, problems[0]
                )
                shutil.rmtree(folder)  # or it would count as one of those to keep
        return Resumed(0, {})

    def maybe_save(
        self, step: int, engines: Mapping[str, Engine], extra: Mapping[str, Any] | None = None
    ) -> bool:
        """Save after every `checkpoint_every` steps; `step` counts the steps that are done.

        `extra` is JSON: controllers, running statistics of rank 0.

        Raises Stopped, with a checkpoint of this step on the disk, when the stage is asked to stop.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        if self._rank.max(float(stopping.is_asked(self._folder.parent))):  # all ranks, or none
            self.save(step, engines, extra)
            self.wait()
            raise stopping.stopped(f"with a checkpoint after step {step:,}")
        if step % self._settings.checkpoint_every:
            return False
        self.save(step, engines, extra)
        return True

    def save(
        self, step: int, engines: Mapping[str, Engine], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Save now: returns once the state is copied, and a thread writes the copy."""
        self.wait()
        pieces = {name: engine.pieces() for name, engine in engines.items()}
        content = _Content(
            step,
            self._copies.of(pieces),
            random_states(),
            {
                "step": step,
                "engines": {name: engine.counters() for name, engine in engines.items()},
                "extra": json.loads(json.dumps(dict(extra or {}))),
            },
        )
        self._pending = self._writer.submit(self._write, content)

    def wait(self) -> None:
        """Until what is being written is on the disk. Raises UserError when it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def steps(self) -> list[int]:
        """The steps of the checkpoints on the disk, oldest first."""
        return [int(p.name.removeprefix("step-")) for p in checkpoint_folders(self._folder)]

    def _write(self, content: _Content) -> None:
        """In the thread: this rank's files, then together with the other ranks the manifest."""
        unfinished = self._folder / f"{_UNFINISHED}{content.step:08d}"
        digests, problem = {}, None
        try:
            digests = _write_files(unfinished, content, self._rank)
        except Exception as error:  # whatever it is, the other ranks must not wait
            problem = _explained(unfinished, error)
        shares = self._channel.gather_objects((digests, problem))
        problem = next((p for _, p in shares if p), None)
        if self._rank.is_main:
            problem = problem or self._finish(
                unfinished, content.step, {n: d for share, _ in shares for n, d in share.items()}
            )
            if problem:
                shutil.rmtree(unfinished, ignore_errors=True)  # explaining it needs some space
        problem = self._channel.broadcast_object(problem)
        if problem:
            raise problem

    def _finish(self, unfinished: Path, step: int, digests: dict[str, str]) -> UserError | None:
        manifest = {"format": _FORMAT, "files": digests}
        try:
            write_durably(unfinished / _MANIFEST, json.dumps(manifest, indent=1).encode())
            target = self._folder / f"step-{step:08d}"
            shutil.rmtree(target, ignore_errors=True)  # of an attempt that went further
            os.replace(unfinished, target)
            sync_folder(self._folder)
            for name in self._newest_first()[self._settings.keep_checkpoints :]:
                shutil.rmtree(self._folder / name)
        except Exception as error:
            return _explained(unfinished, error)
        return None

    def _tidied(self) -> list[str]:
        """The newest first, and nothing left of one that a kill interrupted."""
        for leftover in self._folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        return self._newest_first()

    def _newest_first(self) -> list[str]:
        return [path.name for path in reversed(checkpoint_folders(self._folder))]

    def _load(self, folder: Path, engines: Mapping[str, Engine]) -> Resumed:
        state = json.loads((folder / _STATE).read_text())
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        for name, engine in engines.items():
            own = [folder / file for file in files if Path(file).parent == Path(name)]
            with PieceReader(own) as saved:
                engine.restore(saved, state["engines"][name])
        generators = sorted(file for file in files if file.startswith("random-"))
        # More ranks than there were begin as one of those: all had the same seed.
        own_generators = folder / generators[self._rank.index % len(generators)]
        restore_random_states(torch.load(own_generators, weights_only=True))
        if self._rank.is_main:
            LOG.info("Resuming after step %d from %s", state["step"], folder)
        return Resumed(state["step"], state["extra"])


def _explained(unfinished: Path, error: Exception) -> UserError:
    """What the training is told at its next call."""
    if isinstance(error, OSError):
        return disk_error("write the checkpoint", unfinished, error)
    LOG.error("Writing %s failed", unfinished, exc_info=error)
    problem = f"Cannot write the checkpoint {unfinished}: {type(error).__name__}: {error}"
    return UserError(problem, "See the log; the older checkpoints are whole")


def _write_files(folder: Path, content: _Content, rank: Rank) -> dict[str, str]:
    """This rank's files, flushed to the disk; their sha256 by relative path."""
    digests = {}
    for name, pieces in content.pieces.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        file_name = f"{name}/rank-{rank.index:05d}.safetensors"
        digests[file_name] = write_pieces(folder / file_name, pieces)
    others = [f"random-{rank.index:05d}.pt"]
    with (folder / others[0]).open("wb") as file:
        torch.save(content.random, file)
    if rank.is_main:
        others.append(_STATE)
        (folder / _STATE).write_text(json.dumps(content.state))
    for file_name in others:
        sync_file(folder / file_name)
        digests[file_name] = hash_file(folder / file_name)
    return digests


def checkpoint_folders(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def fault_of_checkpoint(folder: Path, share: int = 0, num_shares: int = 1) -> str:
    """What is wrong with the files of a checkpoint, or with one share of them, or ""."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest.get("format") != _FORMAT:
            return f"its format is {manifest.get('format')}, not {_FORMAT}"
        digests = manifest["files"]
        names = sorted(digests)[share::num_shares]
        found = hash_all(names, lambda name: hash_file(folder / name))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    damaged = [name for name in names if found[name] != digests[name]]
    return f"{damaged[0]} is not the file that was written" if damaged else ""
