"""What an iteration read from before it: pinned when it begins, so that re-running one of its
stages a month later reads the same, whatever has been made since.

pins/v3.json holds, by "base/sft:model", every input of RLHF-V3 that the base or an earlier version
made. What its own stages make for each other is the ledger's.
"""

from collections.abc import Mapping

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract
from data_contracts.errors import StoreError
from data_contracts.store import Store
from flows.graph import version_nodes
from flows.node import BASE, Output, version_label
from flows.recipe import Recipe
from flows.runner import Walk


class _Pins(Contract):
    outputs: dict[str, ArtifactRef]


def read_pins(store: Store, version: int) -> dict[str, ArtifactRef]:
    """The pinned inputs of an iteration; none for the base, or when it has not begun.

    Raises StoreError when the document is damaged.
    """
    content = None if version == BASE else store.read(_document(version))
    if content is None:
        return {}
    try:
        return _Pins.model_validate_json(content).outputs
    except ValueError:
        raise StoreError(
            f"{_document(version)} in the store {store.home} is damaged",
            "Bring it back from a copy, or delete it: the newest results are pinned then",
        ) from None


def pin(walk: Walk, version: int) -> None:
    """Write down what this walk gives an iteration to read from before it.

    Raises UserError when something of it has not been made.
    """
    if version != BASE:
        pins = {str(o): walk.resolve(o) for o in read_from_before(walk.recipe, version)}
        _write(walk.store, version, pins)


def repin(store: Store, recipe: Recipe, version: int, made: Mapping[str, ArtifactRef]) -> None:
    """Let an iteration that has begun read what was made again."""
    pins = read_pins(store, version)
    newer = {str(o) for o in read_from_before(recipe, version)} & made.keys()
    if pins and newer:
        _write(store, version, pins | {name: made[name] for name in newer})


def read_from_before(recipe: Recipe, version: int) -> list[Output]:
    """Outputs of the base and of earlier versions that an iteration reads."""
    read = [o for node in version_nodes(recipe, version) for o in node.outputs_read()]
    return [output for output in dict.fromkeys(read) if output.node.version != version]


def _write(store: Store, version: int, pins: dict[str, ArtifactRef]) -> None:
    if read_pins(store, version) != pins:
        store.write(_document(version), _Pins(outputs=pins).model_dump_json(indent=2).encode())


def _document(version: int) -> str:
    return f"pins/{version_label(version)}.json"
