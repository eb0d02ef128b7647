"""Measured speed of a training stage: tokens a second, model FLOP utilisation, energy, carbon.

Convention of the arithmetic (`ModelConfig.flops_per_token`): 6 operations for each parameter and
token, embeddings included, plus 12 · n_layers · dim · length for attention, counted in full over a
document's own length although half of it is masked. A pass without gradients counts a third. What
activation checkpointing computes twice counts once, so it lowers the utilisation.

Nothing is guessed: without a known peak there is no utilisation, without NVML no energy.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn

from kernels.heads import RewardModel, ValueModel, num_scorer_parameters
from kernels.model import CausalLM, ModelConfig
from stages.runtime.cards import Card, Precision, Site, card_of
from stages.runtime.distributed import Rank

_JOULES_PER_KWH = 3.6e6


def document_flops(model: ModelConfig, num_parameters: int, length: int) -> float:
    """Operations to train on one document, forward and backward.

    `num_parameters` is the policy's, or a scorer's, which has no output layer.
    """
    missing = 6.0 * (model.num_parameters() - num_parameters)
    return length * (model.flops_per_token(length) - missing)


def training_flops(module: nn.Module, lengths: Iterable[int]) -> float:
    """Operations to train a policy or a scorer on documents of these lengths."""
    assert isinstance(module, CausalLM | RewardModel | ValueModel), type(module)
    model = module.config
    is_policy = isinstance(module, CausalLM)
    parameters = model.num_parameters() if is_policy else num_scorer_parameters(model)
    return sum(document_flops(model, parameters, length) for length in lengths)


def speed_metrics(
    seconds: float,
    num_tokens: int,
    flops: float,
    *,
    peak_flops: float | None,
    joules: float,
    site: Site,
) -> dict[str, float]:
    """What was measured over all ranks; `joules` is NaN where it was not, and left out then."""
    metrics = {"throughput/tokens_per_second": num_tokens / seconds}
    if peak_flops is not None:
        metrics["throughput/mfu"] = flops / (seconds * peak_flops)
    if not math.isnan(joules):
        gpu_kwh = joules / _JOULES_PER_KWH
        metrics["energy/kwh"] = site.kwh(gpu_kwh)
        metrics["energy/kgco2eq"] = site.kgco2(gpu_kwh)
    return metrics


class Meter:
    """Measures the steps of one stage. All ranks make the same calls; each watches its own card.

    Time is a step's own; checkpoints and evaluations between steps are not in it, but in the
    energy, which is counted from one reading to the next.
    """

    def __init__(self, precision: Precision, rank: Rank, card: Card | None = None) -> None:
        self._rank = rank
        self._site = Site.of_environment()
        self._energy = Energy(_energy_counter(rank.device))
        self._seconds = 0.0
        known = card or card_of(rank.device)
        self._peak_flops = known and rank.world_size * known.peak_flops(precision)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Measure the block: the work on one global batch, to its last number on the host."""
        started = time.perf_counter()
        yield
        self._seconds = time.perf_counter() - started

    def training(self, module: nn.Module, lengths: Sequence[int]) -> dict[str, float]:
        """`metrics` of a step that trained `module` once on documents of these lengths."""
        return self.metrics(sum(lengths), training_flops(module, lengths))

    def metrics(self, num_tokens: int, flops: float) -> dict[str, float]:
        """Of the last step, for `WorkDir.track`; tokens and operations are those of all ranks.

        The energy is that since the last reading, and 0 where none is due: that of a stage is the
        sum over its steps.
        """
        joules = self._energy.since_last_reading()
        if self._rank.device.type == "cuda":
            joules = self._rank.sum(joules)  # NaN when one rank's card does not say
        return speed_metrics(
            self._seconds,
            num_tokens,
            flops,
            peak_flops=self._peak_flops,
            joules=joules,
            site=self._site,
        )


class Energy:
    """A card's counter, read at most once a second.

    It moves about ten times a second (seen on an H100), so that of a shorter step it says nothing,
    and every reading is a call into the driver.
    """

    def __init__(self, joules: Callable[[], float]) -> None:
        self._joules = joules
        self._last = joules()
        self._read_at = time.monotonic()

    def since_last_reading(self) -> float:
        """Joules used since; 0 within a second of it, NaN where the card does not count."""
        now = time.monotonic()
        if math.isnan(self._last) or now - self._read_at < 1.0:
            return self._last * 0
        before, self._last, self._read_at = self._last, self._joules(), now
        return self._last - before


def _energy_counter(device: torch.device) -> Callable[[], float]:
    """Joules that a card has used since its driver started; NaN for ever where it does not say."""
    if device.type != "cuda":
        return lambda: math.nan
    return nvml_joules(str(torch.cuda.get_device_properties(device).uuid))


def nvml_joules(uuid: str) -> Callable[[], float]:
    """The counter of the card with this id; NaN without nvidia-ml-py, a driver, or a counter."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports] - the extra `gpu`
    except ImportError:
        return lambda: math.nan
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return lambda: math.nan
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
