"""What would make a stage fit: other settings, more GPUs, another card."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from flows.capacity.holdings import Knobs
from flows.capacity.stages import TrainingStage
from stages.runtime.cards import CARDS, Card
from stages.runtime.engine import EngineSettings

GIB = 2**30
RESERVED = 0.06
"""Share of a card's memory left for the CUDA context, NCCL's channels and fragmentation."""
_MOST_GPUS = 8192


@dataclass(frozen=True)
class Remedies:
    """What fits in place of what does not."""

    settings: dict[str, object] | None
    """Fewest changes on the same GPUs, by dotted key; None when there are none."""
    num_gpus: int | None
    """Fewest of the same card; None when no number of them helps."""
    gpu_settings: dict[str, object]
    """Changes to make with them."""
    cards: tuple[str, ...]
    """Other cards on which as many GPUs do."""

    def __str__(self) -> str:
        options = []
        if self.settings:
            options.append(_as_options(self.settings))
        if self.num_gpus:
            options.append(f"{self.num_gpus} GPUs {_as_options(self.gpu_settings)}".strip())
        if self.cards:
            options.append(f"--gpu {' or '.join(self.cards)}")
        return ", or ".join(options) or "no setting, card or number of GPUs helps"


def usable_bytes(card: Card) -> int:
    """Memory of a card that tensors may take."""
    return int(card.memory_gib * GIB * (1 - RESERVED))


def remedies(stage: TrainingStage, card: Card, num_gpus: int) -> Remedies:
    """The least that would make a stage fit that does not."""
    settings = _smallest_change(stage, card, num_gpus)
    more, gpu_settings = _more_gpus(stage, card, num_gpus)
    others = tuple(
        name
        for name, other in CARDS.items()
        if other.memory_gib > card.memory_gib and _smallest_change(stage, other, num_gpus) == {}
    )
    return Remedies(settings, more, gpu_settings, others)


def _smallest_change(
    stage: TrainingStage, card: Card, num_gpus: int, *, offload: bool = True
) -> dict[str, object] | None:
    """Settings to change; {} when none need be, None when none help."""
    before = stage.settings(stage.knobs)
    for knobs in _gentlest_first(stage, offload):
        if stage.memory(knobs, num_gpus).peak <= usable_bytes(card):
            after = stage.settings(knobs)
            return {key: value for key, value in after.items() if value != before[key]}
    return None


def _more_gpus(
    stage: TrainingStage, card: Card, num_gpus: int
) -> tuple[int | None, dict[str, object]]:
    """The fewest GPUs, in doublings, on which the stage fits without the host's help."""
    while (num_gpus := 2 * num_gpus) <= _MOST_GPUS:
        changes = _smallest_change(stage, card, num_gpus, offload=False)
        if changes is not None:
            return num_gpus, changes
    return None, {}


def _gentlest_first(stage: TrainingStage, offload: bool) -> list[Knobs]:
    """Every combination of knobs that saves memory, the least costly to training speed first.

    Offloading steps on the host and comes last; fewer changes come before more.
    """
    own = stage.knobs
    sizes = product(_halvings(own.micro_batch_size), _halvings(own.generation_batch_size))
    candidates = [
        Knobs(engine, micro_batch_size, generation_batch_size)
        for micro_batch_size, generation_batch_size in sizes
        for engine in _engines(own.engine, offload)
    ]
    return sorted(candidates, key=lambda knobs: _hardship(stage, knobs))


def _engines(own: EngineSettings, offload: bool) -> Iterator[EngineSettings]:
    """These settings and all that hold less on a card."""
    for zero_stage, checkpointing, offloaded in product(
        range(own.zero_stage, 4),
        {own.activation_checkpointing, True},
        {own.offload_optimizer, own.offload_optimizer or offload},
    ):
        if zero_stage > 0 or not offloaded:
            yield own.model_copy(
                update={
                    "zero_stage": zero_stage,
                    "activation_checkpointing": checkpointing,
                    "offload_optimizer": offloaded,
                }
            )


def _hardship(stage: TrainingStage, knobs: Knobs) -> tuple[float, ...]:
    before, after = stage.settings(stage.knobs), stage.settings(knobs)
    num_changes = sum(after[key] != value for key, value in before.items())
    return (
        knobs.engine.offload_optimizer,
        num_changes,
        -knobs.generation_batch_size,
        -knobs.micro_batch_size,
        knobs.engine.activation_checkpointing,
        knobs.engine.zero_stage,
    )


def _halvings(number: int) -> list[int]:
    """The number, its half, … 1; or 0 alone."""
    numbers = [number]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    return numbers


def _as_options(settings: dict[str, object]) -> str:
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in settings.items())
