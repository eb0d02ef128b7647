"""Run stages of an iteration again, alone or with what follows from them.

Going downstream stops where an output has the digest that it had before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data_contracts.store import Manifest
from flows.graph import nodes
from flows.node import Node, NodeId, Output
from flows.pins import read_pins, repin
from flows.planner import changed_downstream, head_manifest
from flows.runner import NodeResult, Walk, run_node

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

    def changed(self) -> list[Output]:
        """Outputs that are not what they were."""
        before = self.before.outputs if self.before else {}
        made = self.result.manifest.outputs
        return [Output(self.result.node.id, r) for r, ref in made.items() if before.get(r) != ref]


def rerun(
    node_list: Sequence[Node],
    walk: Walk,
    *,
    force: bool,
    cascade: bool = False,
    run: Run = lambda node, walk, force: run_node(node, walk, force=force),
) -> Iterator[Rerun]:
    """Run nodes of one version on its pinned inputs, and compare with what was there before.

    With `cascade` also what reads an output that has changed, as far as that goes: what had run
    already, and in this version also what had not, once all that it reads is there.
    """
    version = node_list[0].id.version
    changed: set[Output] = set()
    walk.outputs = read_pins(walk.store, version)
    for node in node_list:
        done = _rerun_one(node, walk, force, run)
        changed |= set(done.changed())
        yield done
    for node in nodes(walk.recipe) if cascade else ():
        if node in node_list or changed.isdisjoint(node.outputs_read()):
            continue
        if not _goes_on(node, walk, version):
            continue
        made = {str(output): walk.outputs[str(output)] for output in changed}
        repin(walk.store, walk.recipe, node.id.version, made)
        walk.outputs = read_pins(walk.store, node.id.version) | made
        done = _rerun_one(node, walk, False, run)
        changed |= set(done.changed())
        yield done


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
