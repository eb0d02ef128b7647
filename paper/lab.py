"""One seed's pipeline, run as far as a finding asks for it.

Whatever a finding needs is a stage run in the store: two findings that ask for the same run share
it, and a run of yesterday is not made again.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.parquet import read_table
from data_contracts.store import Manifest, Store
from data_contracts.tables import CONTRACTS
from flows.graph import nodes
from flows.node import Node, NodeId, Output
from flows.recipe import Recipe
from paper.scale import Scale, dialogue_recipe, recipe
from stages.runtime.launcher import Launch
from stages.runtime.stage import run_stage, stage_module

Report = Callable[[str, float], None]
"""Told the name of a stage that was made, and its seconds."""


class Lab:
    """The stages of one seed."""

    def __init__(
        self,
        store: Store,
        scale: Scale,
        seed: int,
        report: Report,
        make_recipe: Callable[[Scale, int], Recipe] = recipe,
    ) -> None:
        self.store = store
        self.scale = scale
        self.seed = seed
        self.recipe = make_recipe(scale, seed)
        self._report = report
        self._nodes = {node.id: node for node in nodes(self.recipe)}
        self._done: dict[NodeId, Manifest] = {}

    def with_dialogues(self) -> "Lab":
        """The same seed's pipeline in the world whose writers also hold dialogues."""
        return Lab(self.store, self.scale, self.seed, self._report, dialogue_recipe)

    # ---- the recipe's own nodes

    def node(self, version: int, name: str) -> Manifest:
        """The recipe's node, made now with all that it reads where the store has it not."""
        node_id = NodeId(version, name)
        if node_id not in self._done:
            self._done[node_id] = self.run(self._node(node_id).stage, self.config(version, name))
        return self._done[node_id]

    def output(self, version: int, name: str, role: str = "model") -> ArtifactRef:
        """One output of a node."""
        return self.node(version, name).outputs[role]

    def config(self, version: int, name: str, /, **changes: Any) -> StageConfig:
        """The node's configuration with other values; inputs that stay as they are, are made."""
        node = self._node(NodeId(version, name))
        kept = {field: source for field, source in node.inputs.items() if field not in changes}
        changed = replace(node, inputs=kept, fixed={**node.fixed, **changes})
        return changed.config(
            lambda output: self.output(output.node.version, output.node.name, output.role),
            self.store.local,
        )

    def _node(self, node_id: NodeId) -> Node:
        node = self._nodes[node_id]
        if node_id == NodeId(1, "sample_pairs"):
            pool = node.settings.model_copy(update={"num_prompts": self.scale.first_week})
            return replace(node, settings=pool)
        if node_id.version == self.recipe.ppo_from_version and node.stage == "reward_model":
            return in_full(node)
        return node

    # ---- other runs

    def varied(self, version: int, name: str, /, **changes: Any) -> Manifest:
        """The node's stage with other settings or inputs."""
        stage = self._node(NodeId(version, name)).stage
        return self.run(stage, self.config(version, name, **changes))

    def made(self, stage: str, /, **fields: Any) -> Manifest:
        """A stage with the given configuration and this seed."""
        config = stage_module(stage).Config.model_validate({"seed": self.seed, **fields})
        return self.run(stage, config)

    def ingested(self, files: ArtifactRef) -> dict[str, ArtifactRef]:
        """The tables of another world's files, read as the recipe reads its own."""
        node = replace(self._node(NodeId(0, "ingest")), files=Output(NodeId(0, "other"), "files"))
        config = node.config(lambda _: files, self.store.local)
        return self.run("ingest", config).outputs

    def run(self, stage: str, config: StageConfig) -> Manifest:
        """The stage's result, from the store or made now on one thread."""
        result = run_stage(stage, config, self.store, launch=Launch(num_threads=1))
        if not result.reused:
            self._report(f"{stage.rpartition('.')[2]} (seed {self.seed})", result.manifest.seconds)
        return result.manifest

    def rows(self, ref: ArtifactRef) -> list[dict[str, Any]]:
        """The rows of a table."""
        return read_table(self.folder(ref), CONTRACTS[ref.kind.split("/")[0]]).to_pylist()

    def folder(self, ref: ArtifactRef) -> Path:
        """Where an artifact's files are."""
        return self.store.local(ref)

    # ---- what many findings read

    @property
    def prompts(self) -> ArtifactRef:
        """All prompts, with their fixed splits."""
        return self.output(0, "ingest", "prompts")

    @property
    def sft(self) -> ArtifactRef:
        """The chat model before RLHF."""
        return self.output(0, "sft")

    def reward_models(self, version: int) -> dict[str, ArtifactRef]:
        """Both reward models of a version, as fields of a configuration."""
        return {
            "helpfulness_rm": self.output(version, "reward_model-helpfulness"),
            "safety_rm": self.output(version, "reward_model-safety"),
        }


def in_full(node: Node) -> Node:
    """A reward model from the chat model on all there is, not the last version's gone on.

    PPO finds what a reward model is wrong about; to choose among samples asks less of it. So it
    learns from every batch, three times, and the Helpfulness RM from all the open-source pairs.
    """
    inputs = {field: source for field, source in node.inputs.items() if field != "continue_from"}
    in_full_settings = {"num_epochs": 3, "other_share": 0.7}
    return replace(node, inputs=inputs, settings=node.settings.model_copy(update=in_full_settings))
