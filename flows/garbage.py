"""`rlhf gc`: what of a home nothing needs any more, and removing it.

Needed is what a head or its history stands on (its outputs, their manifests, and the inputs of
those), what an iteration was begun with, and every registered model. All else goes once it is older
than a number of days: results that no version stands on, work of settings that were given up,
attempts before the newest one of their stage. Metrics of old attempts stay: MLflow is told from
them.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from data_contracts.ledger import Ledger
from data_contracts.store import Manifest, Store
from flows.pins import read_pins
from stages.runtime.workdir import METRICS_FILE

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Garbage:
    """One document or folder that nothing needs."""

    name: str
    """Relative to the home."""
    reason: str
    num_bytes: int


@dataclass(frozen=True)
class _Needed:
    manifests: set[str]
    """Documents' names."""
    keys: set[str]
    objects: set[str]
    """Digests."""


def find_garbage(
    store: Store, registered: Collection[str], planned: Collection[str], older_than: float
) -> list[Garbage]:
    """Everything that can go, manifests before the objects that they name.

    Args:
        store: the home; nobody may be at work in it.
        registered: digests of all registered models.
        planned: keys that the home's recipe would run next: they resume from their work folder.
        older_than: days since anything of it was written.
    """
    before = time.time() - older_than * DAY_SECONDS
    documents = _manifests(store)
    needed = _needed(store, documents, registered, before)
    return [
        *_unneeded_manifests(store, documents, needed),
        *_unneeded_objects(store, needed, before),
        *(g for key in store.work_keys() for g in _work(store, key, needed, planned, before)),
    ]


def remove(store: Store, garbage: Collection[Garbage]) -> None:
    """Remove it; killed half way, the same command goes on."""
    for item in garbage:
        store.remove(item.name)


def _manifests(store: Store) -> dict[str, Manifest]:
    """Every manifest that can be read, by its document; a damaged one is left to fsck."""
    current = {f"manifests/{key}.json": store.recorded(key) for key in store.finished_keys()}
    return {name: m for name, m in current.items() if m} | store.superseded()


def _needed(
    store: Store, documents: dict[str, Manifest], registered: Collection[str], before: float
) -> _Needed:
    ledger = Ledger(store)
    entries = [
        entry
        for version in ledger.versions()
        for node in ledger.nodes(version)
        for entry in ledger.history(version, node)
    ]
    stood_on = [(entry.key, entry.outputs) for entry in entries]
    needed = {
        name: manifest
        for name, manifest in documents.items()
        if (manifest.key, manifest.outputs) in stood_on
        or store.usage(name).modified_at > before
        or any(ref.digest in registered for ref in manifest.outputs.values())
    }
    refs = [r for m in needed.values() for r in (*m.inputs.values(), *m.outputs.values())]
    refs += [ref for entry in entries for ref in entry.outputs.values()]
    refs += [ref for version in ledger.versions() for ref in read_pins(store, version).values()]
    return _Needed(
        set(needed),
        {entry.key for entry in entries} | {manifest.key for manifest in needed.values()},
        {ref.digest for ref in refs} | set(registered),
    )


def _unneeded_manifests(
    store: Store, documents: dict[str, Manifest], needed: _Needed
) -> Iterator[Garbage]:
    for name in documents.keys() - needed.manifests:
        reason = f"no version stands on this run of {documents[name].stage}"
        yield Garbage(name, reason, store.usage(name).num_bytes)


def _unneeded_objects(store: Store, needed: _Needed, before: float) -> Iterator[Garbage]:
    for digest in store.objects():
        if digest in needed.objects:
            continue
        # The listing first: an object without one does not exist.
        for name in (f"objects/{digest}.json", f"objects/{digest}"):
            usage = store.usage(name)
            if usage.num_bytes and store.usage(f"objects/{digest}.json").modified_at <= before:
                yield Garbage(name, "no version and no registered model needs it", usage.num_bytes)


def _work(
    store: Store, key: str, needed: _Needed, planned: Collection[str], before: float
) -> Iterator[Garbage]:
    usage = store.usage(f"work/{key}")
    is_old = usage.modified_at <= before and key not in planned
    if is_old and key not in needed.keys:
        yield Garbage(f"work/{key}", "no version stands on it", usage.num_bytes)
        return
    for attempt in store.attempts(key)[:-1]:
        for path in sorted(attempt.iterdir()):
            name = f"work/{key}/{attempt.name}/{path.name}"
            usage = store.usage(name)
            if path.name != METRICS_FILE and usage.modified_at <= before:
                yield Garbage(name, "of an attempt before the newest", usage.num_bytes)
    name = f"work/{key}/checkpoints"
    num_bytes = store.usage(name).num_bytes
    if is_old and num_bytes:
        yield Garbage(name, "nothing resumes from it", num_bytes)
