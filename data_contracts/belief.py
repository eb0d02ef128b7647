"""When an object is believed: its listing hashes to its digest, and its files to the listing."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data_contracts.artifacts import hash_all, hash_file
from data_contracts.errors import StoreError

MISSING = "missing"

_RACY_NS = 2_000_000_000


def difference(
    digest: str, listing: bytes, names: Sequence[str], hash_of: Callable[[str], str]
) -> str | None:
    """What sets an object apart from its digest, or None when nothing does.

    `listing` is the listing as stored, `names` are the files found, `hash_of` hashes one by name.
    """
    if hashlib.sha256(listing).hexdigest() != digest:
        return "corrupt: its listing has changed"
    expected: dict[str, str] = json.loads(listing)
    if list(names) != sorted(expected):
        lacking = sorted(set(expected) - set(names))
        if lacking:
            return f"corrupt: file {lacking[0]} is missing"
        foreign = sorted(set(names) - set(expected))
        return f"corrupt: file {foreign[0]} does not belong to it"
    hashes = hash_all(names, hash_of)
    changed = [name for name in names if hashes[name] != expected[name]]
    return f"corrupt: file {changed[0]} has changed" if changed else None


def unbelievable(digest: str, url: str, fault: str) -> StoreError:
    """The error for an object that was asked for and has a fault."""
    return StoreError(
        f"Object {digest[:12]} of the store {url} is {fault}",
        "Run the stage that made it again; `rlhf plan` names it",
    )


class HashMemo:
    """Hashes of local files, each file read once per process as long as nothing touches it."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def of(self, path: Path) -> str:
        """sha256 of a file in hex."""
        state = path.stat()
        # ctime and inode too: a copied-over file can carry the old size and mtime.
        seen = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        known = self._known.get(path)
        if known is not None and known[0] == seen:
            return known[1]
        digest = hash_file(path)
        # A write within the clock's grain of the last one would leave the same times behind, so
        # what has only just been written is not remembered.
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _RACY_NS:
            self._known[path] = (seen, digest)
        return digest
