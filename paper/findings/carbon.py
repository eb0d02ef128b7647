"""(s): the carbon table, from the planner's own arithmetic."""

from dataclasses import dataclass

from flows.presets import SIZES
from paper.finding import Chart, Effect, Estimate, Estimates, Finding
from paper.lab import Lab
from stages.runtime.cards import Site

TOLERANCE = 0.005


@dataclass(frozen=True)
class Published:
    """A row of Table 2 beside the GPU hours, which the presets hold."""

    watts: float
    tco2eq: float


TABLE_2 = {
    "7b": Published(400, 31.22),
    "13b": Published(400, 62.44),
    "34b": Published(350, 153.90),
    "70b": Published(400, 291.42),
}


def tonnes(size: str) -> float:
    """tCO2eq of pretraining one size, as `rlhf plan --gpus` works it out for its site."""
    gpu_kwh = SIZES[size].pretraining_gpu_hours * TABLE_2[size].watts / 1000
    return Site().kgco2(gpu_kwh) / 1000


def table_2(lab: Lab) -> Estimates:
    """Tonnes of each size, and the largest relative distance from the paper's."""
    ours = {size: tonnes(size) for size in TABLE_2}
    published = {size: row.tco2eq for size, row in TABLE_2.items()}
    distances = [abs(ours[size] / published[size] - 1) for size in TABLE_2]
    distances.append(abs(sum(ours.values()) / sum(published.values()) - 1))
    return {
        **{f"ours/{size}": Estimate(value) for size, value in ours.items()},
        **{f"paper/{size}": Estimate(value) for size, value in published.items()},
        "within tolerance": Estimate(TOLERANCE - max(distances)),
    }


FINDINGS = (
    Finding(
        "s",
        "Table 2",
        "Pretraining the four sizes emitted 539 tCO2eq.",
        "GPU hours × watts × PUE 1.1 × 0.385 kgCO2eq/kWh by the planner's own functions; every "
        "size and the sum must lie within 0.5 % of the paper's.",
        table_2,
        (Effect("within tolerance", "0.5 % minus the largest relative distance"),),
        (Chart("bars", {"here": "ours", "paper": "paper"}, "size", "tCO2eq"),),
        every_seed=False,
        weight=0.1,
    ),
)
