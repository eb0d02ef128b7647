"""The GPUs that the planner and the meter know, and what the energy of running them emits.

Figures are the manufacturer's for the SXM boards: dense peaks without sparsity, and the board's
power limit. Memory is what CUDA reports, which is a little less than the name says.
"""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from data_contracts.errors import UserError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    device_names: tuple[str, ...]
    """As CUDA calls the boards that reach these figures; slower boards of a family are left out."""
    memory_gib: float
    bandwidth_tb: float
    """Terabytes a second from the card's memory."""
    bf16_tflops: float
    fp32_tflops: float
    """Without TF32, which torch leaves off."""
    watts: float

    def peak_flops(self, precision: Precision) -> float:
        """Floating-point operations a second at most."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


_A100_40 = ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")
_A100_80 = ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM-80GB", "NVIDIA A100 80GB PCIe")
CARDS = {
    card.name: card
    for card in (
        Card("a100-40gb", _A100_40, 39.4, 1.555, 312, 19.5, 400),
        Card("a100-80gb", _A100_80, 79.2, 2.039, 312, 19.5, 400),
        Card("h100-80gb", ("NVIDIA H100 80GB HBM3",), 79.1, 3.35, 989, 67, 700),
        Card("h200", ("NVIDIA H200",), 139.7, 4.8, 989, 67, 700),
    )
}


def card_named(name: str) -> Card:
    """The card that a user means. Raises UserError, naming the known ones, for another."""
    if name not in CARDS:
        raise UserError(f"There is no card {name!r}", f"Take one of {', '.join(CARDS)}")
    return CARDS[name]


def card_of(device: torch.device) -> Card | None:
    """The card behind a device; None for a CPU, an unknown board or a slice of one (MIG)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((card for card in CARDS.values() if name in card.device_names), None)


@dataclass(frozen=True)
class Site:
    """Where the cards stand. The defaults give the paper's Table 2.

    Its tonnes are GPU hours × watts × 0.4235 kgCO2eq/kWh, cut off after two decimals: a power usage
    effectiveness of 1.1 on top of the GPUs' own energy, and a grid of 0.385 kgCO2eq/kWh.
    """

    pue: float = 1.1
    """Energy of the whole data centre over that of the GPUs."""
    kgco2_per_kwh: float = 0.385

    def __post_init__(self) -> None:
        if self.pue < 1 or self.kgco2_per_kwh < 0:
            raise UserError(
                f"A site has a PUE of at least 1 and emits at least 0 kgCO2eq/kWh, not {self}",
                "Correct --pue and --kgco2-per-kwh, or RLHF_PUE and RLHF_KGCO2_PER_KWH",
            )

    @classmethod
    def of_environment(cls) -> "Site":
        """From RLHF_PUE and RLHF_KGCO2_PER_KWH, which an operator sets once for a machine.

        Raises UserError when one of them is not a number.
        """
        return cls(_number("RLHF_PUE", cls.pue), _number("RLHF_KGCO2_PER_KWH", cls.kgco2_per_kwh))

    def kwh(self, gpu_kwh: float) -> float:
        """Energy at the meter for this much at the GPUs."""
        return gpu_kwh * self.pue

    def kgco2(self, gpu_kwh: float) -> float:
        """Carbon dioxide equivalent of this much energy at the GPUs, in kilograms."""
        return self.kwh(gpu_kwh) * self.kgco2_per_kwh


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise UserError(f"{variable} is {text!r}, not a number", "Correct or unset it") from None
