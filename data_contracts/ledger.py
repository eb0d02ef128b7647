"""Which stage run each iteration stands on: a head and its history, for every node.

An iteration's documents lie under iterations/v3/<node>.json; version 0, what RLHF starts from, is
called "base". A head is a claim: believe it only after `Store.check` of its key.
"""

import re
from datetime import UTC, datetime

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract
from data_contracts.errors import StoreError
from data_contracts.store import Store

_BASE = "base"
_VERSION = re.compile(r"v([1-9][0-9]*)")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")


class HeadEntry(Contract):
    """A stage run that was a node's head, with the outputs it had at that time."""

    key: str
    outputs: dict[str, ArtifactRef]
    at: str
    """UTC, ISO 8601."""


class _Node(Contract):
    """The document of a node; the last of the history is the head."""

    head: HeadEntry
    history: tuple[HeadEntry, ...]


class Ledger:
    """The heads of all iterations in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set_head(self, version: int, node: str, key: str) -> None:
        """Make a committed run the head of a node; the same run with the same outputs is no news.

        Raises:
            StoreError: the run has no manifest.
        """
        manifest = self._store.recorded(key)
        if manifest is None:
            raise StoreError(
                f"{node} of {iteration_name(version)} cannot stand on the run {key[:12]}: "
                "it has no manifest",
                "Commit the run first",
            )
        name = _document(version, node)
        with self._store.lock(f"ledger-{iteration_name(version)}-{node}"):
            history = self.history(version, node)
            if history and (history[-1].key, history[-1].outputs) == (key, manifest.outputs):
                return
            at = datetime.now(UTC).isoformat(timespec="seconds")
            entry = HeadEntry(key=key, outputs=manifest.outputs, at=at)
            document = _Node(head=entry, history=(*history, entry))
            self._store.write(name, document.model_dump_json(indent=2).encode())

    def head(self, version: int, node: str) -> str | None:
        """Stage key of a node's head, or None when it has none."""
        history = self.history(version, node)
        return history[-1].key if history else None

    def history(self, version: int, node: str) -> list[HeadEntry]:
        """All heads of a node, the newest last.

        Raises:
            StoreError: the document is damaged.
        """
        name = _document(version, node)
        content = self._store.read(name)
        if content is None:
            return []
        try:
            return list(_Node.model_validate_json(content).history)
        except ValueError:
            raise StoreError(
                f"{name} in the store {self._store.home} is damaged",
                "Bring it back from a copy, or delete it and run the iteration again: "
                "what is done is reused",
            ) from None

    def versions(self) -> list[int]:
        """Versions that have any head, in order."""
        names = self._store.names("iterations")
        found = [0] if _BASE in names else []
        matches = (_VERSION.fullmatch(name) for name in names)
        return found + sorted(int(match[1]) for match in matches if match)

    def nodes(self, version: int) -> list[str]:
        """Nodes of an iteration that have a head, by name."""
        names = self._store.names(f"iterations/{iteration_name(version)}")
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def iteration_name(version: int) -> str:
    """ "base" for 0, else "v3"."""
    if version < 0:
        raise StoreError(f"There is no iteration {version}", "Give 0 for the base, or 1 and up")
    return f"v{version}" if version else _BASE


def _document(version: int, node: str) -> str:
    if not _NODE.fullmatch(node):
        raise StoreError(
            f"{node!r} cannot name a node", "Use letters, digits, and _ . : - after the first"
        )
    return f"iterations/{iteration_name(version)}/{node}.json"
