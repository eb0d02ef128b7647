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
class Remedy:
    """Cards and settings with which a stage fits."""

    card: str
    num_gpus: int
    settings: dict[str, object]
    """What to change in the recipe, by dotted key."""

    def __str__(self) -> str:
        changes = [f"--set {key}={str(value).lower()}" for key, value in self.settings.items()]
        return " ".join([f"--gpus {self.num_gpus} --gpu {self.card}", *changes])


def usable_bytes(card: Card) -> int:
    """Memory of a card that tensors may take."""
    return int(card.memory_gib * GIB * (1 - RESERVED))


def remedies(stage: TrainingStage, card: Card, num_gpus: int) -> list[Remedy]:
    """The least that would make a stage fit that does not; [] when nothing does.

    Other settings on the same GPUs; where there are none, or they step on the host: more GPUs, and
    larger ones. Where none of that does: more and larger ones, or larger ones and the host.
    """
    same = _smallest_change(stage, card, num_gpus)
    found = [] if same is None else [same]
    if same is None or any(key.endswith("offload_optimizer") for key in same.settings):
        more, larger = _more_gpus(stage, card, num_gpus), _larger_card(stage, card, num_gpus)
        found += [remedy for remedy in (more, larger) if remedy]
    if not found:
        larger_cards = _larger_than(card)
        both = (_more_gpus(stage, other, num_gpus) for other in larger_cards)
        helped = (_smallest_change(stage, other, num_gpus) for other in larger_cards)
        firsts = (next(filter(None, tries), None) for tries in (both, helped))
        found = [remedy for remedy in firsts if remedy]
    return found


def _smallest_change(
    stage: TrainingStage, card: Card, num_gpus: int, *, offload: bool = True
) -> Remedy | None:
    before = stage.settings(stage.knobs)
    for knobs in _gentlest_first(stage, offload):
        if stage.memory(knobs, num_gpus).peak <= usable_bytes(card):
            after = stage.settings(knobs)
            changes = {key: value for key, value in after.items() if value != before[key]}
            return Remedy(card.name, num_gpus, changes)
    return None


def _more_gpus(stage: TrainingStage, card: Card, num_gpus: int) -> Remedy | None:
    """The fewest GPUs, in doublings, on which the stage fits without the host's help."""
    while (num_gpus := 2 * num_gpus) <= _MOST_GPUS:
        if remedy := _smallest_change(stage, card, num_gpus, offload=False):
            return remedy
    return None


def _larger_card(stage: TrainingStage, card: Card, num_gpus: int) -> Remedy | None:
    """The smallest other card on which the stage fits without the host's help."""
    for other in _larger_than(card):
        if remedy := _smallest_change(stage, other, num_gpus, offload=False):
            return remedy
    return None


def _larger_than(card: Card) -> list[Card]:
    larger = (other for other in CARDS.values() if other.memory_gib > card.memory_gib)
    return sorted(larger, key=lambda other: other.memory_gib)


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
