"""The engine on two processes: one launch of runtime_toys.ranks finds out, the tests judge."""

from typing import Any

import pytest
import torch
from runtime_toys.llama import MODES, train_llama
from runtime_toys.models import NUM_STEPS, Toy, batch, build, train, train_plainly

from stages.runtime.checkpoints import Checkpointer
from stages.runtime.distributed import process_group

PLAIN_LOSSES, PLAIN_STATE = train_plainly(NUM_STEPS)


def test_ranks_exchange_numbers_and_objects(findings: dict[str, Any]) -> None:
    assert findings["messages"] == {
        "sum": 2.0,
        "tensor": [2, 1],
        "max": 1.0,
        "broadcast": {"from": 0},
        "gather": ["a", "b"],
    }


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_learn_what_one_plain_process_learns(
    findings: dict[str, Any], zero_stage: int
) -> None:
    found = findings[f"zero-{zero_stage}"]
    assert found["losses"] == pytest.approx(PLAIN_LOSSES, abs=1e-4)
    assert found["split_losses"] == pytest.approx(PLAIN_LOSSES, abs=1e-4)
    expected = {name: value.double().sum().item() for name, value in PLAIN_STATE.items()}
    assert found["state"] == pytest.approx(expected, abs=2e-2)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_gathered_weights_are_whole_and_current(findings: dict[str, Any], zero_stage: int) -> None:
    found = findings[f"zero-{zero_stage}"]
    assert found["gathered_error"] == 0
    assert found["gathered_is_freed"], "there is no room for it beside an update"
    assert found["sharded"] == (zero_stage == 3)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_stays_near_fp32(findings: dict[str, Any], zero_stage: int) -> None:
    found = findings[f"zero-{zero_stage}-bf16"]
    assert found["losses"] == pytest.approx(PLAIN_LOSSES, abs=0.05)
    assert found["split_losses"] == pytest.approx(PLAIN_LOSSES, abs=0.05)
    assert found["gathered_error"] == 0


def test_bf16_masters_start_from_the_fp32_weights(findings: dict[str, Any]) -> None:
    assert findings["masters"] == {"1": True, "2": True, "3": True}


def test_rank_0_sets_the_weights_of_a_sharded_module(findings: dict[str, Any]) -> None:
    assert findings["set"] == pytest.approx(PLAIN_LOSSES[:3], abs=1e-4)


def test_evaluation_leaves_a_sharded_gradient_alone(findings: dict[str, Any]) -> None:
    assert findings["interrupted"] == pytest.approx(PLAIN_LOSSES[1], abs=1e-4)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_nan_on_one_rank_skips_the_step_on_all(findings: dict[str, Any], zero_stage: int) -> None:
    found = findings["skipped"][str(zero_stage)]
    assert found == {"untouched": True, "as_if_it_had_not_been": True, "counted": [1, 1]}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_skipped_step_too_many_names_the_guilty_rows_on_all_ranks(
    findings: dict[str, Any], zero_stage: int
) -> None:
    problems = findings["diverged"][str(zero_stage)]
    assert len(problems) == 2
    for problem in problems:
        assert "2 in a row (2 in all)" in problem
        assert problem.endswith("for the rows row-1-1")


def test_resuming_is_exact(findings: dict[str, Any]) -> None:
    assert findings["resume"] == {"0": True, "1": True, "2": True, "3": True}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", ["0 to 3", "3 to 2", "2 to 1", "1 to 0"])
def test_another_zero_stage_goes_on(findings: dict[str, Any], precision: str, change: str) -> None:
    found = findings["reshaped"][f"{precision} {change}"]
    assert found["equal"]
    tolerance = 1e-5 if precision == "fp32" else 0.02
    assert found["losses"] == pytest.approx(found["expected"], abs=tolerance)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_go_on_from_one(findings: dict[str, Any], zero_stage: int) -> None:
    assert findings["from_one_rank"][str(zero_stage)] == pytest.approx(PLAIN_LOSSES[3:6], abs=1e-4)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_one_rank_goes_on_from_two(findings: dict[str, Any], zero_stage: int) -> None:
    rank = process_group()
    engine = build(rank, zero_stage, seed=7)
    Checkpointer(findings["folder"] / "two_ranks", rank).restore({"policy": engine})
    assert engine.num_steps == 3
    losses = train(engine, rank, range(3, 6), [12])
    assert losses == pytest.approx(findings["for_one_rank"], abs=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_offloaded_optimizer_state_changes_nothing(
    findings: dict[str, Any], zero_stage: int
) -> None:
    found = findings["offloaded"][str(zero_stage)]
    assert found["losses"] == pytest.approx(PLAIN_LOSSES[:3], abs=1e-4)
    straight, resumed, on_device = found["going_on"]
    assert resumed == straight
    assert on_device == pytest.approx(straight, abs=1e-5)
    assert found["skipped"] == 1


def test_a_part_that_cannot_be_written_is_told_on_every_rank(findings: dict[str, Any]) -> None:
    on_rank_0, on_rank_1, *left = findings["unwritten"]
    assert on_rank_0 == on_rank_1
    assert on_rank_0.startswith("Cannot write the checkpoint")
    assert left == []


def test_ranks_with_unequal_shares_do_not_wait_for_ever(findings: dict[str, Any]) -> None:
    module = Toy()
    module(*batch(0)).losses.mean().backward()
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in module.parameters() if p.grad is not None]
    )
    assert findings["uneven"] == pytest.approx([norm.item()] * 3, rel=1e-4)


def test_frozen_module_is_sharded_but_gives_the_same(findings: dict[str, Any]) -> None:
    sharded, whole = findings["frozen"]
    assert sharded == pytest.approx(whole, rel=1e-6)
    assert findings["frozen_left"] == 0, "freed when nobody holds it"


@pytest.mark.parametrize("mode", MODES)
def test_the_real_model_learns_the_same_when_sharded(findings: dict[str, Any], mode: str) -> None:
    whole = train_llama(process_group(), 0, mode)
    for zero_stage in (2, 3):
        assert findings["llama"][f"{mode}-{zero_stage}"] == pytest.approx(whole, abs=1e-4)
