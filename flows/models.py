"""The models of a home, and its board: what each version stands on, by the ledger. Which model is a
version's policy, the recipe says."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.ledger import Ledger
from data_contracts.ratings import Domain
from data_contracts.store import Manifest, Store
from flows.environment import places
from flows.graph import policy, reward_model_name
from flows.node import BASE
from flows.occupied import remembered
from flows.recipe import Recipe

MODEL = "model"
_BASE_MODELS = {"base": "pretrain", "sft": "sft"}


@dataclass(frozen=True)
class ModelRow:
    """One model that a version hands on."""

    name: str
    """base, sft, policy, helpfulness-rm or safety-rm."""
    version: int
    """0 for base and sft."""
    digest: str
    path: str
    """Folder in Hugging Face layout, on this machine."""


@dataclass(frozen=True)
class StatusRow:
    """One node of one version as the ledger has it."""

    version: int
    node: str
    state: str
    """done, or why its result cannot be believed."""
    seconds: float
    finished_at: str
    key: str
    outputs: dict[str, str]
    """Digest by role."""

    def as_json(self) -> dict[str, Any]:
        """The row that `rlhf status --json` prints."""
        return asdict(self)


def list_models(store: Store, ledger: Ledger) -> list[ModelRow]:
    """Every model of every version whose files are intact."""
    recipe = _recipe_of(store)
    rows = []
    for version in ledger.versions():
        for name, node in _model_nodes(recipe, ledger, version).items():
            key = ledger.head(version, node)
            manifest = store.manifest(key) if key else None
            if manifest is not None:
                rows.append(_model_row(name, version, manifest.outputs[MODEL], store))
    return rows


def model_digests(recipe: Recipe, ledger: Ledger, version: int) -> dict[str, str]:
    """Digest of each model that an iteration of a recipe has made, by its registered name."""
    heads = {
        name: ledger.history(version, node)
        for name, node in _iteration_models(policy(recipe, version).node.name).items()
    }
    return {name: head[-1].outputs[MODEL].digest for name, head in heads.items() if head}


def _model_nodes(recipe: Recipe | None, ledger: Ledger, version: int) -> dict[str, str]:
    """Name of each model of a version, and the node that makes it."""
    if version == BASE:
        return _BASE_MODELS
    # a PPO model that the ledger still has is the policy no more when the recipe has dropped PPO
    last = policy(recipe, version).node.name if recipe else "ppo"
    return _iteration_models(last if last in ledger.nodes(version) else "rejection_sampling")


def _iteration_models(policy_node: str) -> dict[str, str]:
    return {"policy": policy_node} | {f"{d.value}-rm": reward_model_name(d) for d in Domain}


def _recipe_of(store: Store) -> Recipe | None:
    """The home's recipe; None when it has none that can be read."""
    with suppress(UserError):
        return remembered(places(store.home))
    return None


def version_number(name: str) -> int:
    """n of a version as a user names it: V2, v2 or 2, and sft for 0. Raises UserError."""
    if name.lower() == "sft":
        return BASE
    digits = name.lower().removeprefix("v")
    if not (digits.isascii() and digits.isdigit()):
        raise UserError(f"{name!r} is no version", "Give V2, v2, 2 or sft")
    return int(digits)


def list_status(store: Store, ledger: Ledger) -> list[StatusRow]:
    """Every node that has a head, in the order in which they finished."""
    rows = []
    for version in ledger.versions():
        found = []
        for node in ledger.nodes(version):
            key = ledger.head(version, node)
            if key is not None:
                manifest, reason = store.check(key)
                found.append(_status_row(version, node, key, manifest, reason))
        rows += sorted(found, key=lambda row: (row.finished_at, row.node))
    return rows


def _model_row(name: str, version: int, ref: ArtifactRef, store: Store) -> ModelRow:
    return ModelRow(name, version, ref.digest, str(store.local(ref)))


def _status_row(
    version: int, node: str, key: str, manifest: Manifest | None, reason: str
) -> StatusRow:
    if manifest is None:
        return StatusRow(version, node, reason, 0.0, "", key, {})
    outputs = {role: ref.digest for role, ref in manifest.outputs.items()}
    return StatusRow(version, node, "done", manifest.seconds, manifest.finished_at, key, outputs)
