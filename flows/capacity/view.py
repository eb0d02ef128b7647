"""An assessment as tables and as JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from data_contracts.errors import UserError
from flows.capacity.assessment import Assessment, StageAssessment
from flows.capacity.holdings import StageMemory
from flows.capacity.remedies import GIB, RESERVED, usable_bytes


@dataclass(frozen=True)
class CapacityReport:
    """An assessment to be shown."""

    assessment: Assessment

    def print(self, console: Console) -> None:
        """Memory of a rank, then time and energy, each with what was assumed."""
        console.print(_memory_table(self.assessment))
        console.print(_notes_on_memory(self.assessment), soft_wrap=True)
        console.print(_cost_table(self.assessment))
        console.print(_notes_on_cost(self.assessment), soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        """What `rlhf plan --json` adds; bytes, hours and tonnes unrounded."""
        machine = self.assessment.machine
        return {
            "card": asdict(machine.card),
            "num_gpus": machine.num_gpus,
            "usable_bytes": usable_bytes(machine.card),
            "host_bytes_to_load": self.assessment.host_bytes_to_load,
            "mfu": machine.mfu,
            "watts": machine.watts,
            **asdict(machine.site),
            "assumed": self.assessment.data.model_dump(),
            "stages": [_stage_json(stage) for stage in self.assessment.stages],
        }

    def refuse(self) -> None:
        """Raises UserError that names what does not fit, and what would."""
        refused = [found for found in self.assessment.stages if found.remedies]
        if not refused:
            return
        machine = self.assessment.machine
        needs = ", ".join(
            f"{found.stage.name} {found.memory.peak / GIB:,.1f} GiB ({found.memory.peak_phase})"
            for found in refused
        )
        raise UserError(
            f"Not every stage fits on {machine.num_gpus} × {machine.card.name}, where a rank has "
            f"{usable_bytes(machine.card) / GIB:,.1f} GiB: {needs}",
            "What would fit: "
            + "; ".join(f"{found.stage.name}: {found.remedies}" for found in refused),
        )


def _stage_json(found: StageAssessment) -> dict[str, Any]:
    return {
        "stage": found.stage.name,
        "num_runs": found.stage.num_runs,
        "fits": found.remedies is None,
        "remedies": asdict(found.remedies) if found.remedies else None,
        "settings": found.stage.settings(found.stage.knobs),
        "memory": _memory_json(found.memory),
        "memory_by_zero_stage": {z: _memory_json(m) for z, m in found.by_zero_stage.items()},
        "cost_of_a_run": asdict(found.cost),
    }


def _memory_json(held: StageMemory) -> dict[str, Any]:
    parts = asdict(held)
    return {**parts.pop("trained"), **parts, "peak": held.peak, "peak_phase": held.peak_phase}


def _memory_table(assessment: Assessment) -> Table:
    machine = assessment.machine
    table = Table(title=f"Memory of a rank in GiB, {machine.num_gpus} × {machine.card.name}")
    table.add_column("stage", no_wrap=True)
    table.add_column("ZeRO")
    for header in (
        *("weights", "gradients", "optimizer", "activations", "KV cache", "other models"),
        *("sampler", "peak"),
    ):
        table.add_column(header, justify="right")
    table.add_column("in phase")
    table.add_column("fits")
    for found in assessment.stages:
        for zero_stage, held in found.by_zero_stage.items():
            table.add_row(*_memory_row(assessment, found, zero_stage, held))
        table.add_section()
    return table


def _memory_row(
    assessment: Assessment, found: StageAssessment, zero_stage: int, held: StageMemory
) -> list[str]:
    is_own = zero_stage == found.stage.knobs.engine.zero_stage
    parts = (held.trained.weights, held.trained.gradients, held.trained.optimizer)
    parts += (held.activations, held.kv_cache, held.other_models, held.sampler, held.peak)
    return [
        found.stage.name,
        f"{zero_stage} *" if is_own else str(zero_stage),
        *(f"{part / GIB:,.1f}" if part else "" for part in parts),
        held.peak_phase,
        "yes" if held.peak <= usable_bytes(assessment.machine.card) else "no",
    ]


def _notes_on_memory(assessment: Assessment) -> str:
    card = assessment.machine.card
    return (
        f"* the recipe's setting. Usable are {usable_bytes(card) / GIB:,.1f} of {card.memory_gib} "
        f"GiB: {RESERVED:.0%} is left for the CUDA context, NCCL and fragmentation. The peak is "
        "that of the fullest phase, so not every part is in it. Before it shards them, every rank "
        f"reads whole models into host memory in fp32, {assessment.host_bytes_to_load / GIB:,.1f} "
        "GiB each."
    )


def _cost_table(assessment: Assessment) -> Table:
    table = Table(title="Time and energy of one run")
    table.add_column("stage", no_wrap=True)
    for header in (*("runs", "tokens/s", "a GPU", "hours", "GPU hours", "kWh", "tCO2eq"),):
        table.add_column(header, justify="right")
    for found in assessment.stages:
        table.add_row(*_cost_row(assessment, found))
    table.add_section()
    runs = [(s.stage.num_runs, s.cost) for s in assessment.stages]
    table.add_row(
        *("all runs", "", "", ""),
        f"{sum(n * c.hours for n, c in runs):,.1f}",
        f"{sum(n * c.gpu_hours for n, c in runs):,.0f}",
        f"{sum(n * c.kwh for n, c in runs):,.0f}",
        cut(sum(n * c.tco2eq for n, c in runs)),
    )
    return table


def _cost_row(assessment: Assessment, found: StageAssessment) -> list[str]:
    cost = found.cost
    return [
        found.stage.name,
        str(found.stage.num_runs),
        f"{cost.tokens_per_second:,.0f}",
        f"{cost.tokens_per_second / assessment.machine.num_gpus:,.0f}",
        f"{cost.hours:,.1f}",
        f"{cost.gpu_hours:,.0f}",
        f"{cost.kwh:,.0f}",
        cut(cost.tco2eq),
    ]


def _notes_on_cost(assessment: Assessment) -> str:
    machine = assessment.machine
    data = ", ".join(f"{k}={v:,}" for k, v in assessment.data.model_dump().items())
    return (
        f"Assumed: MFU {machine.mfu:.1%} of passes over documents (6N plus full attention), "
        f"{machine.watts:,.0f} W a GPU, PUE {machine.site.pue}, {machine.site.kgco2_per_kwh} "
        f"kgCO2eq/kWh; {data}. Others: --mfu, --watts, --pue, --kgco2-per-kwh, --assume KEY=VALUE."
    )


def cut(tonnes: float) -> str:
    """Two decimals, cut off and not rounded: so the paper's Table 2 has them."""
    return f"{math.floor(100 * tonnes) / 100:,.2f}"
