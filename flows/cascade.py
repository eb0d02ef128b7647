"""Run stages of an iteration again, alone or with what follows from them.

Going downstream stops where an output has the digest that it had before.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_contracts.artifacts import ArtifactRef
from data_contracts.keys import stage_key
from data_contracts.store import Manifest
from flows.graph import nodes
from flows.node import Node, NodeId, Output
from flows.pins import read_pins, repin
from flows.planner import as_far_as_begun, changed_downstream, head_manifest
from flows.runner import NodeResult, Walk, run_node
from stages.runtime.stage import stage_module

Run = Callable[[Node, Walk, bool], NodeResult]
"""Runs a node; the last argument says whether by force."""


@dataclass(frozen=True)
class Rerun:
    """What re-running a node changed."""

    result: NodeResult
    before: Manifest | None
    """What the node's head was."""
    stale: dict[NodeId, str]
    """Finished nodes downstream whose inputs are not the newest any more."""

    @property
    def is_same(self) -> bool:
        """Whether every output has the digest that it had before."""
        return self.before is not None and self.before.outputs == self.result.manifest.outputs


def rerun(
    node_list: Sequence[Node],
    walk: Walk,
    *,
    force: bool,
    cascade: bool = False,
    run: Run = lambda node, walk, force: run_node(node, walk, force=force),
) -> Iterator[Rerun]:
    """Run nodes of one version on its pinned inputs, and compare with what was there before.

    With `cascade` also whatever follows from them and stands on other outputs than there are now,
    as far as that goes: what had run already, and in this version also what had not, once all that
    it reads is there. That is seen from what each node has read, and not from what this call has
    changed: so a cascade that was interrupted, or comes after the stage, is finished.
    """
    walk.outputs = read_pins(walk.store, node_list[0].id.version)
    for node in node_list:
        yield _rerun_one(node, walk, force, run)
    if cascade:
        yield from _downstream(node_list, walk, run)


def _downstream(begun: Sequence[Node], walk: Walk, run: Run) -> Iterator[Rerun]:
    """Run what follows from nodes and does not stand on the newest of it, in the graph's order."""
    version = begun[0].id.version
    newest: dict[str, ArtifactRef] = {}
    """Outputs of these nodes and of all that follows from them, by `str(Output)`."""
    for node in nodes(as_far_as_begun(walk.recipe, walk.ledger)):
        if node not in begun:
            read = {output for output in node.outputs_read() if str(output) in newest}
            if not read:
                continue
            if _is_behind(node, read, newest, walk) and _goes_on(node, walk, version):
                repin(walk.store, walk.recipe, node.id.version, newest)
                walk.outputs = read_pins(walk.store, node.id.version) | newest
                yield _rerun_one(node, walk, False, run)
        newest |= _head_outputs(node, walk)


def _is_behind(
    node: Node, read: Collection[Output], newest: Mapping[str, ArtifactRef], walk: Walk
) -> bool:
    """Whether a node's head has not read the newest of these outputs, or there is none."""
    manifest = head_manifest(node.id, walk.store, walk.ledger)
    if manifest is None:
        return True
    digests = {ref.digest for ref in manifest.inputs.values()}
    if any(newest[str(o)].digest not in digests for o in read if o != node.files):
        return True
    return node.files in read and manifest.key != _standing_key(node, walk)


def _standing_key(node: Node, walk: Walk) -> str:
    """Key of the run that stands for a node on what there is now. A node of files knows them by
    their digests, which are in its key and not among its inputs."""
    config = node.config(walk.resolve, walk.store.local)
    key = stage_key(node.stage, stage_module(node.stage).VERSION, config)
    return walk.ledger.standing_key(node.id.version, node.id.name, key)


def _head_outputs(node: Node, walk: Walk) -> dict[str, ArtifactRef]:
    manifest = head_manifest(node.id, walk.store, walk.ledger)
    outputs = manifest.outputs if manifest else {}
    return {str(Output(node.id, role)): ref for role, ref in outputs.items()}


def _goes_on(node: Node, walk: Walk, version: int) -> bool:
    ledger = walk.ledger
    if ledger.head(node.id.version, node.id.name) is not None:
        return True
    known = [ledger.head(n.version, n.name) is not None for n in node.upstream]
    return node.id.version == version and all(known)


def _rerun_one(node: Node, walk: Walk, force: bool, run: Run) -> Rerun:
    before = head_manifest(node.id, walk.store, walk.ledger)
    result = run(node, walk, force)
    stale = changed_downstream(walk.recipe, walk.store, walk.ledger)
    return Rerun(result, before, stale)
