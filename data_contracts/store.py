"""The store: the only truth about what is done.

Outputs are objects known by their digest, a manifest says which outputs a stage run had, and the
manifest is written last. What was killed half way is simply not there.

    objects/, manifests/<stage_key>.json, iterations/v3/<node>.json     at home, maybe remote
    superseded/<stage_key>-<outputs>.json                                manifests of other outputs
    work/<stage_key>/attempt-N/, locks/                                  always on a local disk
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract
from data_contracts.errors import StoreError, UserError
from data_contracts.homes import Home, Usage
from data_contracts.local_home import LocalHome
from data_contracts.locks import locked, owner_of
from data_contracts.remote_home import RemoteHome

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_ATTEMPT = re.compile(r"attempt-([0-9]+)")


class Manifest(Contract):
    """The record of one stage run that came to its end."""

    key: str
    """The run's stage key."""
    stage: str
    stage_version: str
    config: dict[str, Any]
    inputs: dict[str, ArtifactRef]
    """By role."""
    outputs: dict[str, ArtifactRef]
    """By role."""
    metrics: dict[str, float]
    num_rows: dict[str, int] = Field(default_factory=dict)
    """Rows of each output that is a table, by role."""
    code_digest: str
    """See `provenance.code_digest`; not in the key."""
    git_commit: str
    """Empty where there is no git."""
    packages: dict[str, str]
    """Installed versions, by distribution."""
    seconds: float
    attempt: int
    finished_at: str
    """UTC, ISO 8601."""


class Store:
    """Artifacts, manifests, locks and work folders under one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.home = home.url

    @classmethod
    def open(cls, home: str | Path, *, scratch: Path | None = None) -> "Store":
        """Open a home: a local folder, made if absent, or an fsspec URL such as s3://bucket/rlhf.

        A remote home needs a local folder for work, locks and downloads: `scratch`, by default
        one for each home under $RLHF_SCRATCH, or else under ~/.cache/llama2-rlhf.

        Raises:
            UserError: the home cannot be reached or made, or its scheme is unknown.
        """
        url = str(home)
        if "://" not in url:
            return cls(LocalHome(Path(url).expanduser().absolute()))
        files, root = _file_system(url)
        if "file" in _protocols(files):
            return cls(LocalHome(Path(root)))
        return cls(RemoteHome(url, files, root, LocalHome(scratch or _default_scratch(url))))

    # ---- artifacts

    def publish(self, folder: Path, kind: str) -> ArtifactRef:
        """Keep a folder's files as an artifact.

        A folder below the store's work/ is moved into the store, any other is copied. Publishing
        the same files again changes nothing, and mends an object that has become corrupt.

        Raises:
            StoreError: the folder is empty, or holds links.
            UserError: the disk is full or out of reach.
        """
        ArtifactRef(digest="0" * 64, kind=kind)  # a bad kind is found before anything moves
        return ArtifactRef(digest=self._home.put(Path(folder)), kind=kind)

    def local(self, ref: ArtifactRef) -> Path:
        """Folder on this machine with the artifact's verified files, to be read only.

        Raises:
            StoreError: the artifact is missing or corrupt.
        """
        return self._home.fetch(ref.digest)

    def holds(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is here and every file still has its digest."""
        return self._home.fault(ref.digest) is None

    # ---- manifests

    def manifest(self, key: str) -> Manifest | None:
        """The run's manifest, when all its outputs can be believed; `check` says why not."""
        return self.check(key)[0]

    def check(self, key: str) -> tuple[Manifest | None, str]:
        """The manifest and "reuse", or None and the reason to run the stage."""
        content = self._home.read(_manifest_name(key))
        if content is None:
            return None, "never run"
        manifest = _parsed(content, key)
        if manifest is None:
            return None, "its manifest is damaged"
        for role, ref in manifest.outputs.items():
            fault = self._home.fault(ref.digest)
            if fault:
                return None, f"output {role} is {fault}"
        return manifest, "reuse"

    def recorded(self, key: str) -> Manifest | None:
        """The manifest as written, its outputs unverified."""
        content = self._home.read(_manifest_name(key))
        return None if content is None else _parsed(content, key)

    def commit(self, manifest: Manifest) -> None:
        """Declare a stage run done. The last write of a run.

        A manifest of the same key with other outputs is kept under superseded/.

        Raises:
            StoreError: an output has not been published.
        """
        for role, ref in manifest.outputs.items():
            if not self._home.has(ref.digest):
                raise StoreError(
                    f"Output {role} of {manifest.stage} ({ref}) is not in the store {self.home}",
                    "Publish every output before the manifest",
                )
        before = self.recorded(manifest.key)
        if before is not None and before.outputs != manifest.outputs:
            self.write(_superseded_name(before), before.model_dump_json(indent=2).encode())
        self.write(_manifest_name(manifest.key), manifest.model_dump_json(indent=2).encode())

    def recorded_with(self, key: str, outputs: Mapping[str, ArtifactRef]) -> Manifest | None:
        """The manifest of the run of a key that had these outputs, the files unverified."""
        manifest = self.recorded(key)
        if manifest is not None and manifest.outputs != outputs:
            content = self._home.read(f"superseded/{_safe(key)}-{_outputs_name(outputs)}.json")
            manifest = None if content is None else _parsed(content, key)
        return manifest

    def reinstate(self, key: str, outputs: Mapping[str, ArtifactRef]) -> Manifest:
        """Make the run of a key that had these outputs the one that the key stands for.

        Raises:
            StoreError: its manifest or a file of it is gone.
        """
        manifest = self.recorded_with(key, outputs)
        if manifest is None:
            raise StoreError(
                f"The manifest of {key[:12]} with these outputs is not in the store {self.home}",
                "Choose another entry of `rlhf history`, or bring it back from a copy",
            )
        for role, ref in outputs.items():
            fault = self._home.fault(ref.digest)
            if fault:
                raise StoreError(
                    f"Output {role} ({ref}) of {key[:12]} is {fault}",
                    "Choose another entry of `rlhf history`, or bring it back from a copy",
                )
        self.commit(manifest)
        return manifest

    # ---- upkeep

    def finished_keys(self) -> list[str]:
        """Stage keys that have a manifest, whole or damaged."""
        return [n.removesuffix(".json") for n in self.names("manifests") if n.endswith(".json")]

    def superseded(self) -> dict[str, Manifest]:
        """Manifests that another run of their key has replaced, by document; damaged ones not."""
        found = {}
        for name in (f"superseded/{n}" for n in self.names("superseded")):
            content = self._home.read(name) or b""
            key = name.partition("/")[2].rpartition("-")[0]
            if manifest := _parsed(content, key):
                found[name] = manifest
        return found

    def objects(self) -> list[str]:
        """Digests of all objects, complete or not."""
        return sorted({name.removesuffix(".json") for name in self.names("objects")})

    def fault(self, digest: str) -> str | None:
        """Why an object cannot be believed ("missing", "corrupt: …"), or None when it can."""
        return self._home.fault(digest)

    def usage(self, name: str) -> Usage:
        """What a document or a folder of the store takes up; nothing when it is not there."""
        return self._home.usage(name)

    def remove(self, name: str) -> None:
        """Remove a document or a folder of the store for good."""
        self._home.remove(name)

    @property
    def scratch(self) -> Path:
        """Local folder of work, locks and downloads: the home itself when it is one."""
        return self._home.scratch

    def work_keys(self) -> list[str]:
        """Stage keys that have a work folder on this machine."""
        folder = self._home.scratch / "work"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(p.name for p in found if p.is_dir() and _SAFE_NAME.fullmatch(p.name))

    def held_locks(self) -> dict[str, str]:
        """Names of the locks that processes of this machine hold now, each with its owner."""
        folder = self._home.scratch / "locks"
        owners = {path.stem: owner_of(path) for path in sorted(folder.glob("*.lock"))}
        return {name: owner for name, owner in owners.items() if owner}

    # ---- documents, for the ledger

    def read(self, name: str) -> bytes | None:
        """A small document of the store, or None."""
        return self._home.read(name)

    def write(self, name: str, content: bytes) -> None:
        """Replace a small document in one durable step."""
        self._home.write(name, content)

    def names(self, folder: str) -> list[str]:
        """Names of the documents in one of the store's folders, sorted."""
        return self._home.names(folder)

    # ---- work

    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[None]:
        """Exclusive among this machine's processes, by stage key or any other name.

        Waits as long as it takes, and says for whom after one second; without `wait`, raises
        UserError at once. The kernel frees it when its owner dies.
        """
        path = self._home.scratch / "locks" / f"{_safe(name)}.lock"
        return locked(path, f"the lock on {name[:40]} of {self.home}", wait=wait)

    def work(self, key: str) -> Path:
        """Local folder of a stage run: attempts, and the checkpoints they share."""
        folder = self.work_folder(key)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        return folder

    def work_folder(self, key: str) -> Path:
        """The same folder, whether it is there or not."""
        return self._home.scratch / "work" / _safe(key)

    def attempts(self, key: str) -> list[Path]:
        """Folders of a run's attempts, the first one first."""
        folder = self.work_folder(key)
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted((p for p in found if _ATTEMPT.fullmatch(p.name)), key=attempt_number)

    def new_attempt(self, key: str) -> Path:
        """Make the folder of the next attempt."""
        while True:
            attempts = self.attempts(key)
            number = attempt_number(attempts[-1]) + 1 if attempts else 1
            folder = self.work(key) / f"attempt-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # another runner took the number
            return folder


def attempt_number(attempt: Path) -> int:
    """N of a folder attempt-N."""
    found = _ATTEMPT.fullmatch(attempt.name)
    if found is None:
        raise ValueError(f"{attempt} is no attempt folder; take one from Store.new_attempt")
    return int(found[1])


def _manifest_name(key: str) -> str:
    return f"manifests/{_safe(key)}.json"


def _superseded_name(manifest: Manifest) -> str:
    return f"superseded/{_safe(manifest.key)}-{_outputs_name(manifest.outputs)}.json"


def _outputs_name(outputs: Mapping[str, ArtifactRef]) -> str:
    """Names a set of outputs: the same for the same digests and kinds by role."""
    named = {role: [ref.kind, ref.digest] for role, ref in outputs.items()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def _parsed(content: bytes, key: str) -> Manifest | None:
    try:
        manifest = Manifest.model_validate_json(content)
    except ValueError:
        return None
    return manifest if manifest.key == key else None


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot name a file of the store",
            "Use letters, digits, and any of _ . : - after the first of them",
        )
    return name


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"Cannot open the store {url}: {error}", "Install it and try again"
        ) from None
    except ValueError:
        raise UserError(
            f"Cannot open the store {url}: nothing here speaks {url.partition(':')[0]}://",
            "Give a local folder, or a URL of fsspec's such as s3://bucket/folder",
        ) from None


def _protocols(files: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _default_scratch(url: str) -> Path:
    base = os.environ.get("RLHF_SCRATCH")
    folder = Path(base) if base else Path.home() / ".cache" / "llama2-rlhf"
    return folder.absolute() / hashlib.sha256(url.encode()).hexdigest()[:16]
