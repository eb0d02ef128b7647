"""A recipe on given cards: what every training stage needs, what it costs, and whether it fits."""

from dataclasses import dataclass, replace

from data_contracts.errors import UserError
from flows.capacity.compute import Cost, Machine, assumed_mfu, cost
from flows.capacity.holdings import StageMemory
from flows.capacity.memory import FP32, num_parameters
from flows.capacity.options import CardOptions
from flows.capacity.remedies import Remedies, remedies, usable_bytes
from flows.capacity.stages import TrainingStage, planned_model, training_stages
from flows.capacity.workload import Workload, workload
from flows.recipe import Recipe
from kernels.model import ModelConfig
from stages.runtime.cards import Site, card_named


@dataclass(frozen=True)
class StageAssessment:
    """One training stage on the cards."""

    stage: TrainingStage
    memory: StageMemory
    """Of a rank, with the recipe's settings."""
    by_zero_stage: dict[int, StageMemory]
    """The same at other ZeRO stages. bf16 at 0 runs as 1, which alone has fp32 masters."""
    cost: Cost
    remedies: Remedies | None
    """What would fit; None when the recipe's settings do."""


@dataclass(frozen=True)
class Assessment:
    """A recipe on the cards."""

    machine: Machine
    model: ModelConfig
    data: Workload
    stages: tuple[StageAssessment, ...]

    @property
    def host_bytes_to_load(self) -> int:
        """Every rank reads a whole model in fp32 into the machine's memory before it is sharded."""
        return FP32 * num_parameters(self.model, "policy")


def assess(recipe: Recipe, cards: CardOptions) -> Assessment:
    """Work everything out; nothing is allocated.

    Raises UserError for an unknown card or assumption, and for a model that cannot be read.
    """
    model, data = planned_model(recipe), workload(cards.assumptions)
    machine = planned_machine(cards, model, data)
    stages = training_stages(recipe, model, data)
    return Assessment(machine, model, data, tuple(_assessed(stage, machine) for stage in stages))


def planned_machine(cards: CardOptions, model: ModelConfig, data: Workload) -> Machine:
    """The cards that the options name, with the paper's figures where they say nothing."""
    if cards.num_gpus is None or cards.card is None:
        raise UserError(
            "A plan for cards needs their number and their kind", "Give both --gpus and --gpu"
        )
    card, site = card_named(cards.card), Site.of_environment()
    return Machine(
        card=card,
        num_gpus=cards.num_gpus,
        mfu=cards.mfu or assumed_mfu(model),
        watts=cards.watts or card.watts,
        site=Site(
            site.pue if cards.pue is None else cards.pue,
            site.kgco2_per_kwh if cards.kgco2_per_kwh is None else cards.kgco2_per_kwh,
        ),
        decode_bandwidth=data.decode_bandwidth,
    )


def _assessed(stage: TrainingStage, machine: Machine) -> StageAssessment:
    held = stage.memory(stage.knobs, machine.num_gpus)
    fits = held.peak <= usable_bytes(machine.card)
    return StageAssessment(
        stage,
        held,
        _by_zero_stage(stage, machine.num_gpus),
        cost(stage.work(stage.knobs, machine.num_gpus), machine),
        None if fits else remedies(stage, machine.card, machine.num_gpus),
    )


def _by_zero_stage(stage: TrainingStage, num_gpus: int) -> dict[int, StageMemory]:
    engine = stage.knobs.engine
    lowest = 1 if engine.offload_optimizer else 0
    return {
        zero_stage: stage.memory(
            replace(stage.knobs, engine=engine.model_copy(update={"zero_stage": zero_stage})),
            num_gpus,
        )
        for zero_stage in range(lowest, 4)
    }
