"""A stage at its place in the pipeline, and the outputs of other places that it reads."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from flows.sources import on_disk
from stages.runtime.stage import stage_module

BASE = 0
"""The version of everything before the first iteration."""


@dataclass(frozen=True, order=True)
class NodeId:
    """The place of a node: version 0 is the base, version n is RLHF-Vn."""

    version: int
    name: str

    def __str__(self) -> str:
        return f"{version_label(self.version)}/{self.name}"


@dataclass(frozen=True, order=True)
class Output:
    """One output of a node, by role."""

    node: NodeId
    role: str

    def __str__(self) -> str:
        return f"{self.node}:{self.role}"


Source = Output | tuple[Output, ...] | dict[str, Output]
"""What a field of a configuration is filled with: one output, a list, or one for each label."""


@dataclass(frozen=True)
class Node:
    """One stage at its place in the pipeline."""

    id: NodeId
    stage: str
    """Module below `stages`."""
    settings: Contract
    seed: int
    inputs: Mapping[str, Source] = field(default_factory=dict)
    """Field of the stage's configuration → where its artifact comes from."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that follow from the place: the version, the domain, labels."""
    files: Output | None = None
    """Output whose folder holds the files that the settings name; the user's folder when None."""
    data_dir: Path = Path()
    """The user's folder."""

    @property
    def upstream(self) -> tuple[NodeId, ...]:
        """Nodes that must have run before."""
        return tuple(dict.fromkeys(output.node for output in self.outputs_read()))

    def outputs_read(self) -> Iterator[Output]:
        """Every output this node reads."""
        if self.files is not None:
            yield self.files
        for source in self.inputs.values():
            yield from outputs_in(source)

    def config(
        self, resolve: Callable[[Output], ArtifactRef], local: Callable[[ArtifactRef], Path]
    ) -> StageConfig:
        """The stage's configuration: `resolve` finds an input, `local` the folder of its files.

        Raises UserError when a file that the settings name is missing.
        """
        folder = local(resolve(self.files)) if self.files else self.data_dir
        settings = on_disk(self.settings, folder)
        return stage_module(self.stage).Config.model_validate(
            {
                **{name: getattr(settings, name) for name in type(settings).model_fields},
                **{name: _resolved(source, resolve) for name, source in self.inputs.items()},
                **self.fixed,
                "seed": self.seed,
            }
        )


def version_label(version: int) -> str:
    """ "base" or "v3"."""
    return "base" if version == BASE else f"v{version}"


def outputs_in(source: Source) -> Iterator[Output]:
    """The outputs that one field of a configuration is filled with."""
    if isinstance(source, Output):
        yield source
    else:
        yield from source.values() if isinstance(source, dict) else source


def _resolved(source: Source, resolve: Callable[[Output], ArtifactRef]) -> Any:
    if isinstance(source, Output):
        return resolve(source)
    if isinstance(source, dict):
        return {label: resolve(output) for label, output in source.items()}
    return tuple(resolve(output) for output in source)
