"""The models of a home, and its board: what each version stands on, read from the ledger alone."""

from dataclasses import asdict, dataclass
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.ledger import Ledger
from data_contracts.ratings import Domain
from data_contracts.store import Manifest, Store
from flows.graph import reward_model_name
from flows.node import BASE

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
    rows = []
    for version in ledger.versions():
        for name, node in model_nodes(ledger, version).items():
            key = ledger.head(version, node)
            manifest = store.manifest(key) if key else None
            if manifest is not None:
                rows.append(_model_row(name, version, manifest.outputs[MODEL], store))
    return rows


def model_nodes(ledger: Ledger, version: int) -> dict[str, str]:
    """Name of each model of a version, and the node that makes it."""
    if version == BASE:
        return _BASE_MODELS
    last = "ppo" if "ppo" in ledger.nodes(version) else "rejection_sampling"
    return {"policy": last} | {f"{d.value}-rm": reward_model_name(d) for d in Domain}


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
