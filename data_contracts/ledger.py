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
    instead_of: str | None = None
    """After a rollback: the key in whose place this run stands; None for a run's own head."""

    def stands_as(self, other: "HeadEntry") -> bool:
        """Whether both say the same but for the time."""
        return self.model_copy(update={"at": other.at}) == other


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
        with self._store.lock(f"ledger-{iteration_name(version)}-{node}"):
            history = self.history(version, node)
            entry = HeadEntry(key=key, outputs=manifest.outputs, at=_now())
            if not (history and history[-1].stands_as(entry)):
                self._append(version, node, entry)

    def roll_back(self, version: int, node: str, to: HeadEntry) -> None:
        """Make an entry of a node's history its head again, by one more entry.

        From now on it stands wherever the head it replaces would: see `standing_key`.

        Raises:
            StoreError: its manifest or a file of it is gone.
        """
        with self._store.lock(f"ledger-{iteration_name(version)}-{node}"):
            head = self.history(version, node)[-1]
            replaced = head.instead_of or head.key
            self._store.reinstate(to.key, to.outputs)
            instead_of = None if replaced == to.key else replaced
            entry = HeadEntry(key=to.key, outputs=to.outputs, at=_now(), instead_of=instead_of)
            self._append(version, node, entry)
        self._follow(to)

    def _follow(self, to: HeadEntry) -> None:
        """Give every other head of the same key the outputs that its manifest has now."""
        for version in self.versions():
            for node in self.nodes(version):
                head = self.history(version, node)[-1]
                if head.key == to.key and head.outputs != to.outputs:
                    changes = {"outputs": to.outputs, "at": _now()}
                    self._append(version, node, head.model_copy(update=changes))

    def standing_key(self, version: int, node: str, key: str) -> str:
        """The key whose run stands for `key` at a node: another one after a rollback.

        New settings or inputs have another key, and that one stands for itself.
        """
        history = self.history(version, node)
        return history[-1].key if history and history[-1].instead_of == key else key

    def _append(self, version: int, node: str, entry: HeadEntry) -> None:
        document = _Node(head=entry, history=(*self.history(version, node), entry))
        self._store.write(_document(version, node), document.model_dump_json(indent=2).encode())

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
