"""`rlhf gc`: what of a home nothing needs any more, and removing it.

Needed is what a head or its history stands on (its outputs, their manifests, and the inputs of
those), what an iteration was begun with, and every registered model. All else goes once it is older
than a number of days: results that no version stands on, work of settings that were given up,
attempts before the newest one of their stage. Metrics of old attempts stay: MLflow is told from
them.

A run that was stopped, or failed, was promised to go on from its checkpoint, by whichever command
began it. So its work folder stays for `UNFINISHED_DAYS`, however little older the rest has to be,
unless the user gives it up.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from data_contracts.ledger import Ledger
from data_contracts.store import Manifest, Store, attempt_number
from flows.pins import read_pins
from stages.runtime.checkpoints import checkpoint_folders
from stages.runtime.workdir import METRICS_FILE

DAY_SECONDS = 86_400
UNFINISHED_DAYS = 7
"""How long an unfinished run's checkpoints are kept at least."""


@dataclass(frozen=True)
class Item:
    """One document or folder of a home."""

    name: str
    """Relative to the home."""
    reason: str
    """Why it goes, or stays."""
    num_bytes: int


@dataclass(frozen=True)
class Sorting:
    """What of a home can go, and what of that age stays because a run goes on from it."""

    garbage: list[Item]
    """Manifests before the objects that they name."""
    kept: list[Item]


@dataclass(frozen=True)
class _Needed:
    manifests: set[str]
    """Documents' names."""
    keys: set[str]
    objects: set[str]
    """Digests."""


def find_garbage(
    store: Store,
    registered: Collection[str],
    planned: Collection[str] | None,
    older_than: float,
    unfinished: bool = False,
) -> Sorting:
    """Everything that can go, and what is kept for a run to resume from.

    Args:
        store: the home; nobody may be at work in it.
        registered: digests of all registered models.
        planned: keys that the home's recipe would run next: they resume from their work folder.
            None when nobody can tell, and everything unfinished may be among them.
        older_than: days since anything of it was written.
        unfinished: whether this age is enough for what other unfinished runs resume from, too.
    """
    now = time.time()
    before = now - older_than * DAY_SECONDS
    days = older_than if unfinished else max(older_than, UNFINISHED_DAYS)
    resumed = _resumed(store, planned, now - days * DAY_SECONDS)
    documents = _manifests(store)
    needed = _needed(store, documents, registered, before)
    garbage = [
        *_unneeded_manifests(store, documents, needed),
        *_unneeded_objects(store, needed, before),
        *(
            item
            for key in store.work_keys()
            if key not in resumed
            for item in _work(store, key, needed, before)
        ),
    ]
    return Sorting(garbage, list(_old_checkpoints(store, resumed, before)))


def remove(store: Store, garbage: Collection[Item]) -> None:
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
) -> Iterator[Item]:
    for name in documents.keys() - needed.manifests:
        reason = f"no version stands on this run of {documents[name].stage}"
        yield Item(name, reason, store.usage(name).num_bytes)


def _unneeded_objects(store: Store, needed: _Needed, before: float) -> Iterator[Item]:
    for digest in store.objects():
        if digest in needed.objects:
            continue
        # The listing first: an object without one does not exist.
        for name in (f"objects/{digest}.json", f"objects/{digest}"):
            usage = store.usage(name)
            if usage.num_bytes and store.usage(f"objects/{digest}.json").modified_at <= before:
                yield Item(name, "no version and no registered model needs it", usage.num_bytes)


def _resumed(store: Store, planned: Collection[str] | None, since: float) -> dict[str, str]:
    """Stage keys that a run goes on from, each with the run; all of their work folder stays.

    An earlier attempt may be the one that says whether the run was forced, and so whether the next
    one resumes.
    """
    found = {}
    for key in store.work_keys():
        if planned is not None and key in planned:
            found[key] = "the recipe's next run resumes from it"
        elif planned is None and _is_unfinished(store, key):
            found[key] = (
                "the recipe's next run may resume from it: its source files are not here to tell"
            )
        elif _is_unfinished(store, key) and store.usage(f"work/{key}").modified_at > since:
            found[key] = (
                f"a run that has not finished resumes from it, for {UNFINISHED_DAYS} days; "
                "--unfinished gives it up"
            )
    return found


def _is_unfinished(store: Store, key: str) -> bool:
    """Whether the newest attempt came as far as a checkpoint, and not to the key's manifest.

    A finished key has such an attempt when it was forced, or when its outputs had been damaged.
    """
    attempts = store.attempts(key)
    if not attempts or not checkpoint_folders(store.work_folder(key) / "checkpoints"):
        return False
    manifest = store.recorded(key)
    return manifest is None or manifest.attempt != attempt_number(attempts[-1])


def _old_checkpoints(store: Store, resumed: Mapping[str, str], before: float) -> Iterator[Item]:
    """What would go by its age, if nothing resumed from it."""
    for key, reason in resumed.items():
        name = f"work/{key}/checkpoints"
        num_bytes = store.usage(name).num_bytes
        if num_bytes and store.usage(f"work/{key}").modified_at <= before:
            yield Item(name, reason, num_bytes)


def _work(store: Store, key: str, needed: _Needed, before: float) -> Iterator[Item]:
    usage = store.usage(f"work/{key}")
    is_old = usage.modified_at <= before
    if is_old and key not in needed.keys:
        yield Item(f"work/{key}", "no version stands on it", usage.num_bytes)
        return
    for attempt in store.attempts(key)[:-1]:
        for path in sorted(attempt.iterdir()):
            name = f"work/{key}/{attempt.name}/{path.name}"
            usage = store.usage(name)
            if path.name != METRICS_FILE and usage.modified_at <= before:
                yield Item(name, "of an attempt before the newest", usage.num_bytes)
    name = f"work/{key}/checkpoints"
    num_bytes = store.usage(name).num_bytes
    if is_old and num_bytes:
        yield Item(name, "nothing resumes from it", num_bytes)
