"""`rlhf fsck`: whether ledger, manifests, objects and checkpoints of a home agree."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import StoreError, UserError
from data_contracts.ledger import HeadEntry, Ledger, iteration_name
from data_contracts.store import Manifest, Store
from flows.environment import Places
from flows.pins import read_pins
from flows.recipe import parse_file
from stages.runtime.checkpoints import checkpoint_folders, fault_of_checkpoint


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written."""

    file: str
    """Relative to the home (checkpoints: to its folder on this machine)."""
    problem: str
    remedy: str


@dataclass(frozen=True)
class Inspection:
    """What was looked at, and what was found."""

    num_heads: int
    num_manifests: int
    num_objects: int
    num_checkpoints: int
    findings: list[Finding]


def inspect(store: Store, where: Places) -> Inspection:
    """Read every file of a home and hash what has a digest. Changes nothing."""
    heads, findings = _heads(store)
    manifests = {key: store.recorded(key) for key in store.finished_keys()}
    objects = store.objects()
    checkpoints = [
        folder
        for key in store.work_keys()
        for folder in checkpoint_folders(store.work_folder(key) / "checkpoints")
    ]
    findings += _recipe(where)
    findings += _pins(store)
    findings += _broken_manifests(manifests)
    findings += [finding for head in heads for finding in _about_head(head, store)]
    findings += _objects(store, objects, heads, [m for m in manifests.values() if m])
    for folder in checkpoints:
        if problem := fault_of_checkpoint(folder):
            name = str(folder.relative_to(folder.parents[3]))
            remedy = f"Delete {folder}: the stage then resumes from the one before, or begins anew"
            findings.append(Finding(name, problem, remedy))
    return Inspection(len(heads), len(manifests), len(objects), len(checkpoints), findings)


@dataclass(frozen=True)
class _Head:
    version: int
    node: str
    entries: list[HeadEntry]

    @property
    def file(self) -> str:
        return f"iterations/{iteration_name(self.version)}/{self.node}.json"

    @property
    def again(self) -> str:
        return f"Make it again: rlhf stage {self.node} --version {self.version}"


def _heads(store: Store) -> tuple[list[_Head], list[Finding]]:
    ledger = Ledger(store)
    heads, findings = [], []
    for version in ledger.versions():
        for node in ledger.nodes(version):
            head = _Head(version, node, [])
            try:
                heads.append(_Head(version, node, ledger.history(version, node)))
            except StoreError as error:
                findings.append(Finding(head.file, "it is damaged", error.remedy))
    return heads, findings


def _recipe(where: Places) -> Iterator[Finding]:
    if where.recipe.is_file():
        try:
            parse_file(where.recipe)
        except UserError as error:
            yield Finding(where.recipe.name, error.problem, "Delete it and name --recipe once")


def _pins(store: Store) -> Iterator[Finding]:
    for version in Ledger(store).versions():
        try:
            read_pins(store, version)
        except StoreError as error:
            name = f"pins/{iteration_name(version)}.json"
            yield Finding(name, "it is damaged", error.remedy)


def _broken_manifests(manifests: dict[str, Manifest | None]) -> Iterator[Finding]:
    for key, manifest in manifests.items():
        if manifest is None:
            remedy = "Bring it back from a copy, or delete it: the next run makes the result again"
            yield Finding(f"manifests/{key}.json", "it is damaged", remedy)


def _about_head(head: _Head, store: Store) -> Iterator[Finding]:
    """The head stands on its key's manifest; the history can still be gone back to."""
    newest = head.entries[-1]
    manifest = store.recorded(newest.key)
    if manifest is None:
        yield Finding(head.file, f"its head {newest.key[:12]} has no manifest", head.again)
    elif manifest.outputs != newest.outputs:
        problem = f"its head {newest.key[:12]} has other outputs than the key's manifest"
        yield Finding(head.file, problem, head.again)
    for entry in head.entries[:-1]:
        if store.recorded_with(entry.key, entry.outputs) is None and (
            (entry.key, entry.outputs) != (newest.key, newest.outputs)
        ):
            problem = f"the manifest of {entry.key[:12]} of {entry.at}, in its history, is gone"
            yield Finding(head.file, problem, "Bring it back from a copy; nothing else needs it")


def _objects(
    store: Store, objects: list[str], heads: list[_Head], manifests: list[Manifest]
) -> Iterator[Finding]:
    """Objects that are missing or corrupt, each once, with who needs it and who can make it."""
    makers = _makers(heads)
    needed = {ref.digest: ref for ref in _references(heads, manifests)}
    for digest in sorted({*objects, *needed}):
        fault = store.fault(digest)
        if fault is None:
            continue
        name = f"objects/{digest}"
        if digest in makers:
            yield Finding(name, f"it is {fault}", makers[digest].again)
        elif digest in needed:
            remedy = "No head makes it now: bring it back from a copy, if you mean to go back to it"
            yield Finding(name, f"{needed[digest]} is {fault}", remedy)
        else:
            yield Finding(name, f"it is {fault}", "Nothing needs it: rlhf gc --older-than 0")


def _makers(heads: list[_Head]) -> dict[str, _Head]:
    """The head whose stage makes an object, by digest."""
    return {ref.digest: h for h in heads for ref in h.entries[-1].outputs.values()}


def _references(heads: list[_Head], manifests: list[Manifest]) -> Iterator[ArtifactRef]:
    for head in heads:
        for entry in head.entries:
            yield from entry.outputs.values()
    for manifest in manifests:
        yield from manifest.inputs.values()
        yield from manifest.outputs.values()
