"""Measured speed and energy: the arithmetic by hand, and the counters that may not be there."""

import math
import sys
from types import ModuleType

import pytest
import torch

from kernels.heads import RewardModel, ScoreHead
from kernels.model import CausalLM, ModelConfig
from stages.runtime import throughput
from stages.runtime.cards import CARDS, Site, card_of
from stages.runtime.distributed import Rank
from stages.runtime.throughput import (
    Energy,
    Meter,
    nvml_joules,
    speed_metrics,
    training_flops,
)

CONFIG = ModelConfig(
    vocab_size=10, dim=4, n_layers=2, n_heads=2, n_kv_heads=1, ffn_hidden=8, max_seq_len=64
)
CPU = Rank(0, 1, 0, torch.device("cpu"))


def test_operations_are_counted_by_document() -> None:
    policy = CausalLM(CONFIG, None)
    # 388 parameters; attention within the documents of 3 and 5 tokens
    assert training_flops(policy, [3, 5]) == 8 * 6 * 388 + 12 * 2 * 4 * (3 * 3 + 5 * 5)
    scorer = RewardModel(policy.backbone, ScoreHead(CONFIG, None))
    assert sum(p.numel() for p in scorer.parameters()) == 388 - 40 + 4
    assert training_flops(scorer, [3]) == 3 * 6 * (388 - 40 + 4) + 12 * 2 * 4 * 3 * 3


def test_metrics_by_hand() -> None:
    found = speed_metrics(2.0, 1000, 6.24e14, peak_flops=6.24e14, joules=7.2e6, site=Site(1.5, 0.2))
    assert found == {
        "throughput/tokens_per_second": 500.0,
        "throughput/mfu": 0.5,
        "energy/kwh": pytest.approx(3.0),  # 2 kWh of the GPUs
        "energy/kgco2eq": pytest.approx(0.6),
    }


def test_what_is_not_known_is_not_logged() -> None:
    meter = Meter("fp32", CPU)
    with meter.step():
        pass
    found = meter.training(CausalLM(CONFIG, None), [3, 5])
    assert list(found) == ["throughput/tokens_per_second"]


def test_a_meter_measures_its_block_and_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    meter = Meter("bf16", Rank(0, 8, 0, torch.device("cpu")), CARDS["h200"])
    with meter.step():
        pass
    found = meter.metrics(num_tokens=4000, flops=4 * 8 * 989e12 / 2)
    assert found == {"throughput/tokens_per_second": 1000.0, "throughput/mfu": 0.5}


def test_cards_are_known_by_the_whole_of_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    names = {
        "NVIDIA A100-SXM4-80GB": "a100-80gb",
        "NVIDIA H200": "h200",
        "NVIDIA H200 MIG 1g.18gb": None,
        "NVIDIA H100 PCIe": None,
    }
    for name, card in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert card_of(device) == (CARDS[card] if card else None)
    assert card_of(torch.device("cpu")) is None


class FakeNvml(ModuleType):
    """What nvidia-ml-py offers of NVML; `millijoules` None: the card does not count."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: int | None, has_driver: bool = True) -> None:
        super().__init__("pynvml")
        self.millijoules = millijoules
        self.has_driver = has_driver

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-abc"
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if self.millijoules is None:
            raise self.NVMLError("Not Supported")
        return self.millijoules


def test_energy_is_read_once_a_second_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [100.0], [5.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    energy = Energy(lambda: used[0])
    found = []
    for seconds, joules in ((0.4, 20.0), (0.4, 30.0), (0.3, 40.0), (0.5, 50.0), (0.6, 60.0)):
        now[0], used[0] = now[0] + seconds, joules
        found.append(energy.since_last_reading())
    assert found == [0.0, 0.0, 35.0, 0.0, 20.0]
    assert math.isnan(Energy(lambda: math.nan).since_last_reading())


def test_energy_is_read_where_the_card_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(millijoules=5_000)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    joules = nvml_joules("abc")
    assert joules() == 5.0
    nvml.millijoules = 7_500
    assert joules() == 7.5


@pytest.mark.parametrize("nvml", [None, FakeNvml(None), FakeNvml(1, has_driver=False)])
def test_energy_is_left_out_where_it_is_not_counted(
    nvml: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert math.isnan(nvml_joules("abc")())
