"""Run one node: inputs from the ledger, the stage, the ledger's new head. Prefect's tasks and the
command line both end here, so both agree on what is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.errors import UserError
from data_contracts.keys import stage_key
from data_contracts.ledger import Ledger
from data_contracts.store import Manifest, Store
from flows.environment import Places
from flows.graph import nodes
from flows.node import Node, NodeId, Output
from flows.planner import head_manifest, is_named, standing_manifest, unknown_node
from flows.progress import Terminal, duration
from flows.recipe import Recipe
from flows.tracking.tracker import Tracker
from stages.runtime import stopping
from stages.runtime.stage import StageResult, run_stage, stage_module


@dataclass(frozen=True)
class NodeResult:
    """What running a node gave."""

    node: Node
    manifest: Manifest
    reused: bool


class Walk:
    """A recipe's nodes against one home: what was made on the way is what comes next reads.

    An input is taken from this walk, else from what the caller pinned, else from the ledger: so
    re-running V3's reward model a month later reads V3's inputs.
    """

    def __init__(
        self,
        recipe: Recipe,
        where: Places,
        pinned: Mapping[str, ArtifactRef] | None = None,
        terminal: Terminal | None = None,
        execute: "Execute | None" = None,
    ) -> None:
        self.recipe = recipe
        self.where = where
        self.store = Store.open(where.home)
        self.ledger = Ledger(self.store)
        self.terminal = terminal or Terminal()
        self.execute = execute or run_here
        self.tracker = Tracker(recipe, where, self.store, warn=self.terminal.line)
        self.outputs: dict[str, ArtifactRef] = dict(pinned or {})
        """By `str(Output)`: "base/sft:model"."""

    def resolve(self, output: Output) -> ArtifactRef:
        """The artifact that an output stands for.

        Raises UserError when the node it comes from has not run.
        """
        if str(output) not in self.outputs:
            manifest = head_manifest(output.node, self.store, self.ledger)
            if manifest is None:
                raise UserError(
                    f"{output.node} has not run in {self.where.home}, or its files are gone",
                    f"Run it first: rlhf stage {output.node.name} --version {output.node.version}, "
                    "or rlhf run for everything",
                )
            self.remember(output.node, manifest)
        return self.outputs[str(output)]

    def remember(self, node: NodeId, manifest: Manifest) -> None:
        """Take a node's outputs as the ones to read from now on."""
        self.outputs.update(
            {str(Output(node, role)): ref for role, ref in manifest.outputs.items()}
        )


Execute = Callable[[Node, StageConfig, Walk, bool], StageResult]
"""Runs the stage of a node; the last argument says whether by force."""


def run_here(node: Node, config: StageConfig, walk: Walk, force: bool) -> StageResult:
    """Run a stage in this process, or in ranks that it starts on this machine."""
    launch = walk.recipe.launch.of(node.stage)
    return run_stage(node.stage, config, walk.store, force=force, launch=launch)


def run_node(node: Node, walk: Walk, *, force: bool = False) -> NodeResult:
    """Reuse or make a node's outputs, set the ledger's head, and say so on the terminal.

    Raises UserError when an input or a file is missing, and what the stage raises.
    """
    if stopping.is_asked(walk.store.scratch):
        raise stopping.stopped(f"before {node.id}")
    config = node.config(walk.resolve, walk.store.local)
    key = stage_key(node.stage, stage_module(node.stage).VERSION, config)
    label = str(node.id)
    standing = None if force else standing_manifest(node.id, key, walk.store, walk.ledger)[0]
    if standing is not None:
        result = NodeResult(node, standing, reused=True)
        why = "reused" if standing.key == key else "rolled back"
        walk.terminal.line(f"= {label}: {why}, {standing.key[:12]}")
    else:
        run = walk.tracker.begin(node, key, config)
        with walk.terminal.watching(label, walk.store, key, on_tick=run.flush_sometimes):
            made = walk.execute(node, config, walk, force)
        result = NodeResult(node, made.manifest, made.reused)
        walk.terminal.line(
            f"+ {label}: {'reused' if made.reused else duration(made.manifest.seconds)}, {key[:12]}"
        )
    if result.manifest.key == key:  # after a rollback the head stays as it is
        walk.ledger.set_head(node.id.version, node.id.name, key)
    walk.remember(node.id, result.manifest)
    walk.tracker.record(node, result.manifest, walk.store)
    return result


def find_nodes(recipe: Recipe, name: str, version: int | None) -> list[Node]:
    """The nodes that a user means by a stage's or a node's name and a version.

    Raises UserError, saying what there is, when there is none or more than one version has it.
    """
    everything = nodes(recipe)
    named = [n for n in everything if is_named(n, [name])]
    if not named:
        raise unknown_node(everything, name)
    versions = sorted({n.id.version for n in named})
    if version is None and len(versions) > 1:
        raise UserError(
            f"{name} is part of the versions {', '.join(map(str, versions))}",
            "Say which one with --version N",
        )
    chosen = versions[0] if version is None else version
    if chosen not in versions:
        raise UserError(
            f"There is no {name} in version {chosen}",
            f"It is part of the versions {', '.join(map(str, versions))}",
        )
    return [n for n in named if n.id.version == chosen]
