"""What a run would do, and why: for every node, reuse or run, before anything is started."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.errors import UserError
from data_contracts.keys import stage_key
from data_contracts.ledger import Ledger
from data_contracts.store import Manifest, Store
from flows.graph import nodes
from flows.node import Node, NodeId, Output, outputs_in
from flows.recipe import Recipe
from flows.sources import on_disk
from stages.runtime.stage import stage_code, stage_module

_MOST_CHANGES_SHOWN = 3


@dataclass(frozen=True)
class Step:
    """One node of a plan."""

    node: Node
    action: Literal["reuse", "run"]
    reason: str
    key: str | None = None
    """None while an input is not known yet."""
    manifest: Manifest | None = None
    """Of the finished run that is reused."""
    config: StageConfig | None = None
    missing: str = ""
    """What the user has to supply before this node can run."""
    code_changed: bool = False
    """The code of the stage is not the one that made what is reused."""

    def as_json(self) -> dict[str, Any]:
        """The row that `rlhf plan --json` prints."""
        outputs = self.manifest.outputs if self.manifest else {}
        return {
            "version": self.node.id.version,
            "node": self.node.id.name,
            "stage": self.node.stage,
            "action": self.action,
            "reason": self.reason,
            "missing": self.missing or None,
            "code_changed": self.code_changed,
            "key": self.key,
            "inputs": sorted(str(output) for output in self.node.outputs_read()),
            "outputs": {role: ref.digest for role, ref in outputs.items()},
            "settings": self.node.settings.model_dump(mode="json"),
        }


def plan(
    recipe: Recipe, store: Store | None, ledger: Ledger | None, force: Collection[str] = ()
) -> list[Step]:
    """Every node with what would happen to it; `force` names nodes ("ppo" or "v2/ppo").

    Without a store (no home yet) everything has still to run.

    Raises UserError when a name means no node.
    """
    refuse_unknown(recipe, force)
    known: dict[Output, ArtifactRef] = {}
    steps: dict[NodeId, Step] = {}
    for node in nodes(recipe):
        step = _step(node, steps, known, store, ledger, force)
        steps[node.id] = step
        if step.action == "reuse" and step.manifest:
            known.update({Output(node.id, r): ref for r, ref in step.manifest.outputs.items()})
    return list(steps.values())


def is_named(node: Node, names: Collection[str]) -> bool:
    """Whether a user's list of names means this node: by node, by stage, or with its version."""
    return bool({str(node.id), node.id.name, node.stage} & set(names))


def refuse_unknown(recipe: Recipe, names: Collection[str]) -> None:
    """Raise UserError, saying what there is, for a name that means no node of a recipe."""
    everything = nodes(recipe)
    for name in names:
        if not any(is_named(node, [name]) for node in everything):
            raise unknown_node(everything, name)


def unknown_node(everything: Sequence[Node], name: str) -> UserError:
    """The error for a name that means none of a recipe's nodes."""
    known = list(dict.fromkeys(node.id.name for node in everything))
    return UserError(
        f"The recipe has no node {name!r}",
        f"Take one of {', '.join(known)}, or one of a version, like {everything[-1].id}",
    )


def as_far_as_begun(recipe: Recipe, ledger: Ledger) -> Recipe:
    """The recipe with every version that has begun: the weekly flow goes on beyond num_versions."""
    num_versions = max([recipe.num_versions, *ledger.versions()])
    return recipe.model_copy(update={"num_versions": num_versions})


def changed_downstream(recipe: Recipe, store: Store, ledger: Ledger) -> dict[NodeId, str]:
    """Finished nodes whose inputs are no longer the newest, with the reason; transitively."""
    everything = nodes(as_far_as_begun(recipe, ledger))
    heads = {node.id: head_manifest(node.id, store, ledger) for node in everything}
    stale: dict[NodeId, str] = {}
    for node in everything:
        manifest = heads[node.id]
        if manifest is None:
            continue
        read = {ref.digest for ref in manifest.inputs.values()}
        for output in node.outputs_read():
            upstream = heads[output.node]
            if output.node in stale:
                stale[node.id] = f"{output.node} is stale"
            elif output == node.files:
                continue  # known by its files' digests: a change shows in the plan
            elif upstream and upstream.outputs[output.role].digest not in read:
                stale[node.id] = f"{output} is another one now"
    return stale


def head_manifest(node: NodeId, store: Store, ledger: Ledger) -> Manifest | None:
    """Manifest of a node's newest run, if there is one and its files are intact."""
    key = ledger.head(node.version, node.name)
    return store.manifest(key) if key else None


def standing_manifest(
    node: NodeId, key: str, store: Store, ledger: Ledger
) -> tuple[Manifest | None, str]:
    """The finished run that stands for a node whose key is `key`, and why it does or none can.

    It is the run of that key, or the one that the node was rolled back to.
    """
    standing = ledger.standing_key(node.version, node.name, key)
    manifest = store.manifest(standing) if standing != key else None
    return (manifest, f"rolled back to {standing[:12]}") if manifest else store.check(key)


def _step(
    node: Node,
    steps: Mapping[NodeId, Step],
    known: Mapping[Output, ArtifactRef],
    store: Store | None,
    ledger: Ledger | None,
    force: Collection[str],
) -> Step:
    head = head_manifest(node.id, store, ledger) if store and ledger else None
    waiting = [n for n in node.upstream if steps[n].action == "run"]
    if waiting:
        return Step(node, "run", _waiting_reason(node, waiting, head), missing=_missing(node))
    try:
        config = node.config(lambda output: known[output], store.local if store else _no_store)
    except UserError as error:
        return Step(node, "run", "never run" if head is None else "sources", missing=str(error))
    key = stage_key(node.stage, stage_module(node.stage).VERSION, config)
    if store is None or ledger is None:
        return Step(node, "run", "never run", key, config=config)
    manifest, reason = standing_manifest(node.id, key, store, ledger)
    if manifest is None:
        reason = _changes(node, config, head) if head and head.key != key else reason
        return Step(node, "run", reason, key, config=config)
    if is_named(node, force):
        return Step(node, "run", "forced", key, manifest, config)
    changed = manifest.code_digest != current_code(node.stage)
    return Step(
        node,
        "reuse",
        "same settings and inputs, files verified" if manifest.key == key else reason,
        manifest.key,
        manifest,
        config,
        code_changed=changed,
    )


def _waiting_reason(node: Node, waiting: list[NodeId], head: Manifest | None) -> str:
    if head is None:
        return "never run"
    fields = [
        name
        for name, source in node.inputs.items()
        if any(output.node in waiting for output in outputs_in(source))
    ] or ["sources"]
    return f"input {', '.join(fields)} may change: {', '.join(map(str, waiting))} will run"


@functools.cache
def current_code(stage: str) -> str:
    """Digest of the code behind a stage as it is now."""
    return stage_code(stage_module(stage).__name__)


def _no_store(ref: ArtifactRef) -> Path:
    raise AssertionError(f"{ref} is known, but there is no store")


def _missing(node: Node) -> str:
    """What a node that cannot be configured yet lacks of the user's files."""
    if node.files is not None:
        return ""
    try:
        on_disk(node.settings, node.data_dir)
    except UserError as error:
        return str(error)
    return ""


def _changes(node: Node, config: StageConfig, head: Manifest) -> str:
    """How a configuration differs from the one of the node's newest run."""
    version = stage_module(node.stage).VERSION
    if head.stage_version != version:
        return f"stage VERSION changed: {head.stage_version} → {version}"
    old, new = dict(_leaves(_meaning(node.stage, head.config))), dict(_leaves(config.meaning()))
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    inputs = sorted({k.split(".")[0] for k in keys if k.split(".")[0] in node.inputs})
    settings = [k for k in keys if k.split(".")[0] not in node.inputs]
    parts = [f"input {name} changed" for name in inputs]
    if settings:
        shown = [f"{k} {_shown(old, k)} → {_shown(new, k)}" for k in settings]
        more = len(shown) - _MOST_CHANGES_SHOWN
        tail = f" and {more} more" if more > 0 else ""
        parts.append(f"config changed: {', '.join(shown[:_MOST_CHANGES_SHOWN])}{tail}")
    return "; ".join(parts) or "data contracts changed"


def _meaning(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return stage_module(stage).Config.model_validate(config).meaning()
    except ValueError:  # written by an older version of the stage
        return dict(config)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{i}")
    else:
        yield prefix, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "unset"
    return text if len(text) <= 40 else text[:39] + "…"
