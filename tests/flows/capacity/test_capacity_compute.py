"""Time, energy and carbon by hand, and the paper's Table 2."""

import pytest

from flows.capacity.compute import (
    DEFAULT_MFU,
    Cost,
    Decoding,
    Machine,
    Passes,
    Work,
    assumed_mfu,
    cost,
    document_flops,
    fine_tuning,
    ppo,
    pretrain,
    reward_model,
)
from flows.capacity.holdings import Knobs
from flows.capacity.view import cut
from flows.capacity.workload import Workload
from flows.recipe import load_recipe
from kernels.model import ModelConfig
from stages.ppo import PpoSettings
from stages.reward_model import RewardModelSettings
from stages.runtime.cards import CARDS, Site
from stages.runtime.engine import EngineSettings
from stages.sft import SftSettings

TABLE_2 = {
    "7b": (184_320, 400, "31.22"),
    "13b": (368_640, 400, "62.44"),
    "34b": (1_038_336, 350, "153.90"),
    "70b": (1_720_320, 400, "291.42"),
}
"""GPU hours, watts and tCO2eq as printed."""

SMALL = ModelConfig(
    vocab_size=10, dim=4, n_layers=2, n_heads=2, n_kv_heads=1, ffn_hidden=8, max_seq_len=64
)
PARAMETERS = 388  # 2 · 10 · 4 + 2 · (4 · 8 + 4 · 4 + 3 · 4 · 8 + 2 · 4) + 4
DATA = Workload(num_demonstrations=3, num_comparisons=5, prompt_tokens=6, response_tokens=4)
A100 = CARDS["a100-80gb"]


def machine(**changes: float) -> Machine:
    values = {"num_gpus": 4, "mfu": 0.5, "watts": 400.0, "decode_bandwidth": 0.5} | changes
    return Machine(card=A100, site=Site(), **values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", TABLE_2)
def test_table_2_is_reproduced_from_hours_and_watts(size: str) -> None:
    gpu_hours, watts, printed = TABLE_2[size]
    tonnes = Site().kgco2(gpu_hours * watts / 1000) / 1000
    assert cut(tonnes) == printed


def test_the_paper_emitted_539_tonnes() -> None:
    sites = [Site().kgco2(hours * watts / 1000) for hours, watts, _ in TABLE_2.values()]
    assert sum(hours for hours, _, _ in TABLE_2.values()) == 3_311_616
    assert round(sum(sites) / 1000) == 539


def test_the_table_implies_04235_kg_for_a_kwh_of_the_gpus() -> None:
    """Printed tonnes are cut off: each row bounds the factor from both sides, and all agree."""
    rows = [(hours * watts / 1e6, float(printed)) for hours, watts, printed in TABLE_2.values()]
    lowest = max(tonnes / mwh for mwh, tonnes in rows)
    highest = min((tonnes + 0.01) / mwh for mwh, tonnes in rows)
    assert lowest <= Site().kgco2(1.0) < highest
    assert (lowest, highest) == (pytest.approx(0.42350, abs=5e-6), pytest.approx(0.42351, abs=5e-6))
    # rounded to the nearest they would contradict each other
    assert max((t - 0.005) / m for m, t in rows) > min((t + 0.005) / m for m, t in rows)


@pytest.mark.parametrize(("size", "percent"), [("7b", 45.3), ("13b", 42.6), ("34b", 38.0)])
def test_a_published_size_reproduces_its_gpu_hours(size: str, percent: float) -> None:
    recipe = load_recipe(size)
    model = recipe.pretrain.model.config(32_000)
    assert 100 * assumed_mfu(model) == pytest.approx(percent, abs=0.05)
    found = cost(pretrain(recipe.pretrain, model), machine(num_gpus=64, mfu=assumed_mfu(model)))
    assert found.gpu_hours == pytest.approx(TABLE_2[size][0], rel=1e-9)
    assert assumed_mfu(SMALL) == DEFAULT_MFU


def test_cost_by_hand() -> None:
    # 4 GPUs · 50 % of 312 TFLOP/s do 6.24e17 operations in 1000 s: 1.11 GPU hours, 0.444 kWh
    passes = (Passes(6.24e17, num_items=64),)
    found = cost(Work(2_000_000, passes, "bf16"), machine())
    assert found == Cost(
        hours=pytest.approx(1000 / 3600),
        gpu_hours=pytest.approx(4000 / 3600),
        tokens_per_second=pytest.approx(2000),
        kwh=pytest.approx(1.1 * 0.4 * 4000 / 3600),
        tco2eq=pytest.approx(0.385e-3 * 1.1 * 0.4 * 4000 / 3600),
    )
    assert cost(Work(1, passes, "fp32"), machine()).hours == pytest.approx(16 * found.hours)


def test_decoding_is_paid_for_in_bytes_read() -> None:
    # each of 4 ranks writes 8 rows of 100 tokens: 100 reads of 10.195 GB at half of 2.039 TB/s
    decoding = Decoding(3200, num_responses=32, num_rows=8, bytes_read=10.195e9)
    found = cost(Work(3200, (), "bf16", decoding), machine())
    assert found.hours * 3600 == pytest.approx(1.0)


def test_gpus_without_a_document_wait_and_are_paid_for() -> None:
    """6 documents at a time: 4 ranks need two rounds, as 3 would; 12 ranks need one, as 6 would."""
    work = Work(1, (Passes(6.24e17, num_items=6),), "bf16")
    hours = {n: cost(work, machine(num_gpus=n)).hours for n in (1, 3, 4, 6, 12, 10**9)}
    assert hours[3] == hours[4] == pytest.approx(hours[1] / 3)
    assert hours[6] == hours[12] == hours[10**9] == pytest.approx(hours[1] / 6)
    assert cost(work, machine(num_gpus=12)).gpu_hours == pytest.approx(2 * hours[1])
    responses = Decoding(3200, num_responses=2, num_rows=1, bytes_read=10.195e9)
    writing = [cost(Work(3200, (), "bf16", responses), machine(num_gpus=n)) for n in (2, 4)]
    assert writing[0].hours == writing[1].hours


def test_operations_of_a_document() -> None:
    assert SMALL.num_parameters() == PARAMETERS
    # 6 for each parameter and 12 · n_layers · dim · length for attention, for each of 5 tokens
    policy = 5 * (6 * PARAMETERS + 12 * 2 * 4 * 5)
    assert document_flops(SMALL, "policy", 1, 5) == policy
    assert document_flops(SMALL, "policy", 1, 1) == SMALL.flops_per_token(1)
    scorer = 5 * (6 * (PARAMETERS - 10 * 4 + 4) + 12 * 2 * 4 * 5)
    assert document_flops(SMALL, "scorer", 2, 5) == 2 * scorer


def test_work_of_the_fine_tuning_stages() -> None:
    tuned = fine_tuning(SftSettings(num_epochs=2), DATA, SMALL)
    assert tuned.num_tokens == 2 * 3 * 10
    assert tuned.flops == document_flops(SMALL, "policy", 6, 10)
    ranked = reward_model(RewardModelSettings(), DATA, SMALL)
    assert ranked.num_tokens == 2 * 5 * 10
    assert ranked.flops == document_flops(SMALL, "scorer", 10, 10)


def test_work_of_ppo() -> None:
    settings = PpoSettings(
        num_iterations=10,
        batch_size=8,
        num_held_out_prompts={"helpfulness": 3, "safety": 1},
        evaluate_every=5,
    )
    found = ppo(settings, DATA, SMALL, Knobs(EngineSettings(), 1, generation_batch_size=16), 2)
    sampled, learnt = 10 * 8 + 3 * 4, 10 * 8  # held out before training, after 5 and after 10
    policy, scorer = (document_flops(SMALL, kind, 1, 10) for kind in ("policy", "scorer"))
    prompt = document_flops(SMALL, "policy", 1, 6)
    assert found.num_tokens == sampled * 10
    assert found.flops == pytest.approx(
        sampled * (prompt + 2 * policy + 2 * scorer) / 3 + learnt * (policy + scorer + scorer / 3)
    )
    assert found.decoding is not None
    assert found.decoding.num_tokens == sampled * 4
    assert found.decoding.num_rows == 4  # half a batch on each of two ranks
    # fp32 weights, and keys and values of 4 rows at their mean length of 6 + 4 / 2
    assert found.decoding.bytes_read == 4 * PARAMETERS + 4 * 8 * (2 * 4 * 2 * 1 * 2)


def test_tonnes_are_cut_off_as_the_paper_does() -> None:
    assert [cut(t) for t in (62.4476, 0.009, 1234.5678)] == ["62.44", "0.00", "1,234.56"]
