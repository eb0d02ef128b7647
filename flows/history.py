"""What each node has stood on so far, and going back to an earlier result of one."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from data_contracts.errors import UserError
from data_contracts.ledger import HeadEntry, Ledger, iteration_name
from data_contracts.store import Store

_DIGEST = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class HistoryRow:
    """One head that a node of a version has had."""

    version: int
    node: str
    at: str
    """UTC, ISO 8601."""
    key: str
    outputs: dict[str, str]
    """Digest by role."""
    is_head: bool
    rolled_back: bool
    """Whether a rollback, and no run, made it the head."""

    def as_json(self) -> dict[str, Any]:
        """The row that `rlhf history --json` prints."""
        return asdict(self)


def list_history(
    store: Store, version: int | None = None, stage: str | None = None
) -> list[HistoryRow]:
    """Every head of every node, the oldest of a node first.

    Args:
        store: the home.
        version: only this version, 0 for the base.
        stage: only this stage (reward_model) or node (reward_model-safety).

    Raises UserError when a version or a stage is asked for that has no history.
    """
    ledger = Ledger(store)
    rows = [
        _row(v, node, entry, entry is entries[-1])
        for v in ledger.versions()
        if version in (None, v)
        for node in ledger.nodes(v)
        if stage is None or is_of_stage(node, stage)
        for entries in [ledger.history(v, node)]
        for entry in entries
    ]
    asked = [part for part in (stage, _name_of(version)) if part]
    if asked and not rows:
        raise _no_history(store, " of ".join(asked))
    return rows


def _name_of(version: int | None) -> str | None:
    return None if version is None else iteration_name(version)


def _no_history(store: Store, where: str) -> UserError:
    return UserError(
        f"{where} has no history in {store.home}", "`rlhf history` shows what there is"
    )


def is_of_stage(node: str, stage: str) -> bool:
    """Whether a node's name is, or belongs to, a stage's: reward_model-safety, reward_model."""
    return node == stage or node.startswith(f"{stage}-")


@dataclass(frozen=True)
class Rollback:
    """A node that stands on an earlier run again."""

    version: int
    node: str
    before: HeadEntry
    now: HeadEntry


def roll_back(store: Store, version: int, stage: str, digest: str) -> Rollback:
    """Make the run that had this digest a node's head again; the history only grows.

    `digest` is the beginning of an output's digest or of a stage key, as `rlhf history` prints
    them.

    Raises UserError when none or several fit, or when the files of it are gone.
    """
    if not _DIGEST.fullmatch(digest):
        raise UserError(f"{digest!r} is no digest", "Give at least four of its hexadecimal digits")
    ledger = Ledger(store)
    where = f"{stage} of {iteration_name(version)}"
    nodes = [node for node in ledger.nodes(version) if is_of_stage(node, stage)]
    if not nodes:
        raise _no_history(store, where)
    found = {node: list(_named(ledger.history(version, node), digest)) for node in nodes}
    found = {node: entries for node, entries in found.items() if entries}
    names = {name for entries in found.values() for name, _ in entries}
    show = f"`rlhf history --version {version} --stage {stage}` shows its digests"
    if not found:
        raise UserError(f"No run of {where} has the digest {digest}", show)
    if len(names) > 1 or len(found) > 1:
        raise UserError(f"{digest} means several results of {where}", f"Give more digits; {show}")
    ((node, entries),) = found.items()
    before, to = ledger.history(version, node)[-1], entries[-1][1]
    if (to.key, to.outputs) == (before.key, before.outputs):
        raise UserError(f"{where} stands on {digest} already", show)
    ledger.roll_back(version, node, to)
    return Rollback(version, node, before, to)


def _named(entries: list[HeadEntry], digest: str) -> Iterator[tuple[str, HeadEntry]]:
    """Entries of which a digest or the key begins so, each with that digest or key."""
    for entry in entries:
        for name in (entry.key, *(ref.digest for ref in entry.outputs.values())):
            if name.startswith(digest):
                yield name, entry


def _row(version: int, node: str, entry: HeadEntry, is_head: bool) -> HistoryRow:
    outputs = {role: ref.digest for role, ref in entry.outputs.items()}
    return HistoryRow(
        version, node, entry.at, entry.key, outputs, is_head, entry.instead_of is not None
    )
