"""Artifacts: folders of files known by the digest of their contents."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from data_contracts.base import Contract
from data_contracts.errors import StoreError

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(/[0-9]+\.[0-9]+)?$")]

_NUM_HASHING_THREADS = min(8, os.cpu_count() or 1)

Listing = dict[str, str]
"""Relative POSIX path of each file of an artifact, and its sha256 in hex."""


class ArtifactRef(Contract):
    """What one stage hands to the next: a digest, never a path."""

    digest: Digest
    """sha256 in hex of the artifact's listing in canonical JSON."""
    kind: Kind
    """A table contract ("preferences/1.0") or "checkpoint", "tokenizer", "files", "figures"."""

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:12]}"


def inputs_of(config: Contract) -> dict[str, ArtifactRef]:
    """Every artifact a config names, by field: policy, preferences.0, models.v3."""
    return dict(_references("", dict(config)))


def _references(name: str, value: Any) -> Iterator[tuple[str, ArtifactRef]]:
    if isinstance(value, ArtifactRef):
        yield name, value
    elif isinstance(value, Contract):
        yield from _references(name, dict(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references(f"{name}.{key}".lstrip("."), item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _references(f"{name}.{i}", item)


def listing_of(folder: Path) -> Listing:
    """Hash every file of a folder.

    Raises:
        StoreError: the folder is missing or empty, or holds a link or a special file.
    """
    listing = hash_all(file_names(folder), lambda name: hash_file(folder / name))
    if not listing:
        raise StoreError(
            f"{folder} holds no file", "An artifact needs at least one file; write it first"
        )
    return listing


def file_names(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below a folder, sorted; links are refused."""
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder", "Publish the folder that holds the files")
    names = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise StoreError(
                    f"{path} is a link or a special file",
                    "An artifact holds plain files only: copy what the link points to",
                )
        names.extend(Path(parent, name).relative_to(folder).as_posix() for name in files)
    return sorted(names)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_all(names: Sequence[str], hash_of: Callable[[str], str]) -> Listing:
    """The hash of each name, several files at a time: a 70B checkpoint is 140 GB in 30 shards."""
    with ThreadPoolExecutor(_NUM_HASHING_THREADS) as pool:
        return dict(zip(names, pool.map(hash_of, names), strict=True))


def listing_bytes(listing: Listing) -> bytes:
    """The canonical JSON of a listing; its sha256 is the artifact's digest."""
    return json.dumps(listing, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest_of(listing: Listing) -> str:
    """The digest by which an artifact is known."""
    return hashlib.sha256(listing_bytes(listing)).hexdigest()
