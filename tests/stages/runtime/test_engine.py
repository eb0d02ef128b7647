"""The engine in one process: equal to plain torch, whatever the ZeRO stage and the split.

ZeRO-3 needs two ranks and is tried in test_engine_ranks."""

import gc
import math
import weakref
from collections.abc import Sequence

import pytest
import torch
from runtime_toys.models import (
    NUM_STEPS,
    OPTIMIZER,
    SCHEDULE,
    Toy,
    batch,
    build,
    train,
    train_plainly,
)

from stages.runtime.distributed import process_group
from stages.runtime.engine import DivergedError, Engine, EngineSettings, frozen
from stages.runtime.schedules import constant, cosine_with_warmup

PLAIN_LOSSES, PLAIN_STATE = train_plainly(NUM_STEPS)


def largest_difference(state: dict[str, torch.Tensor]) -> float:
    assert state.keys() == PLAIN_STATE.keys()
    return max((value - PLAIN_STATE[name]).abs().max().item() for name, value in state.items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("splits", [[12], [5, 4, 3], [1, 11]], ids=str)
def test_engine_equals_plain_torch_for_every_split_into_micro_batches(
    zero_stage: int, splits: list[int]
) -> None:
    rank = process_group()
    engine = build(rank, zero_stage)
    losses = train(engine, rank, range(NUM_STEPS), splits)
    assert losses == pytest.approx(PLAIN_LOSSES, abs=2e-5)
    assert largest_difference(engine.full_state()) < 2e-4
    assert engine.num_steps == NUM_STEPS
    assert engine.last_step.learning_rate == SCHEDULE(NUM_STEPS - 1)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_number_of_micro_batches_may_change_from_step_to_step(zero_stage: int) -> None:
    rank = process_group()
    engine = build(rank, zero_stage)
    for step, splits in enumerate([[12], [4, 4, 4], [6, 6], [12], [1, 2, 3, 6]]):
        loss = train(engine, rank, range(step, step + 1), splits)
        assert loss == pytest.approx([PLAIN_LOSSES[step]], abs=2e-5)


def test_evaluation_between_micro_batches_leaves_the_gradient_alone() -> None:
    rank = process_group()
    for zero_stage in (0, 2):
        engine = build(rank, zero_stage)
        for step in range(3):
            tokens, targets = batch(step)
            engine.backward(engine(tokens[:6], targets[:6]).losses.sum() / 12, last=False)
            with torch.no_grad():
                engine(tokens, targets)
            loss = engine(tokens[6:], targets[6:])
            with torch.no_grad():
                engine(tokens, targets)
            engine.backward(loss.losses.sum() / 12, last=True)
            with torch.no_grad():
                engine(tokens, targets)
            engine.step()
        with torch.no_grad():
            after = engine(*batch(3)).losses.mean().item()
        assert after == pytest.approx(PLAIN_LOSSES[3], abs=2e-5)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_bf16_masters_start_from_the_fp32_weights(zero_stage: int) -> None:
    engine = build(process_group(), zero_stage, "bf16")
    state = engine.full_state()
    for name, value in Toy().state_dict().items():
        assert torch.equal(state[name], value), name
    assert next(engine.module.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_bf16_accumulates_micro_batches_in_fp32(zero_stage: int) -> None:
    rank = process_group()
    engine = build(rank, zero_stage, "bf16")
    losses = train(engine, rank, range(NUM_STEPS), [1] * 12)
    assert losses == pytest.approx(PLAIN_LOSSES, abs=0.05)


def test_bf16_keeps_the_sums_of_micro_batches_in_fp32_to_the_update() -> None:
    """Rounded on their way through the reduction, fp32 sums would be for nothing."""
    engine = build(process_group(), 0, "bf16")
    tokens, targets = batch(0)
    for i, piece in enumerate(zip(tokens.split(4), targets.split(4), strict=True)):
        engine.backward(engine(*piece).losses.sum() / len(tokens), last=i == 2)
    sums = torch.cat(engine._deepspeed.optimizer.fp32_groups_gradients_flat)
    exact = sums != sums.bfloat16().float()
    assert exact.float().mean() > 0.5  # most have digits that bf16 has not


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (2, "bf16")])
def test_what_is_gathered_has_the_trained_weights(zero_stage: int, precision: str) -> None:
    rank = process_group()
    engine = build(rank, zero_stage, precision)
    train(engine, rank, range(2), [12])
    with torch.no_grad(), engine.gathered() as plain:
        assert torch.equal(plain(*batch(9)).losses, engine(*batch(9)).losses)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_load_full_state_replaces_the_weights(zero_stage: int) -> None:
    rank = process_group()
    engine = build(rank, zero_stage, seed=1)
    engine.load_full_state(Toy().state_dict())
    losses = train(engine, rank, range(5), [12])
    assert losses == pytest.approx(PLAIN_LOSSES[:5], abs=2e-5)


def step_with(engine: Engine, step: int, factors: Sequence[float]) -> None:
    """One step in micro-batches whose losses are multiplied."""
    tokens, targets = batch(step)
    size = len(tokens) // len(factors)
    pieces = zip(tokens.split(size), targets.split(size), strict=True)
    for i, (piece, factor) in enumerate(zip(pieces, factors, strict=True)):
        loss = engine(*piece).losses.sum() / len(tokens) * factor
        engine.backward(loss, i == len(factors) - 1, [f"row-{i}"])
    engine.step()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("factors", [(1, math.nan), (math.inf, 1), (1, 1, math.nan)], ids=str)
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace_but_a_count(
    zero_stage: int, precision: str, factors: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    rank = process_group()
    engine, clean = build(rank, zero_stage, precision), build(rank, zero_stage, precision)
    for each in (engine, clean):
        train(each, rank, range(2), [12])
    step_with(engine, 2, factors)
    clean.num_steps += 1  # the schedule goes by the data
    assert engine.num_steps == 3
    assert engine.last_step.as_metrics("train")["train/skipped_steps"] == 1
    assert not math.isfinite(engine.last_step.gradient_norm)
    guilty = next(i for i, factor in enumerate(factors) if factor != 1)
    assert f"Step 2 was skipped, not finite: row-{guilty}" in caplog.text
    assert train(engine, rank, range(3, 6), [5, 7]) == train(clean, rank, range(3, 6), [5, 7])


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is_finite() -> None:
    engine = build(process_group())
    before = engine.full_state()
    constant_nan = torch.tensor(math.nan)
    engine.backward(engine(*batch(0)).losses.mean() + constant_nan, last=True)
    engine.step()
    assert engine.last_step.num_skipped == 1
    assert all(torch.equal(before[name], value) for name, value in engine.full_state().items())


def test_too_many_skipped_steps_in_a_row_end_training_and_name_the_guilty_rows() -> None:
    engine = build(process_group(), max_skipped_in_a_row=2)
    train(engine, process_group(), range(2), [12])
    for step in range(2, 4):
        step_with(engine, step, (1, math.nan, 1, math.inf))
    with pytest.raises(DivergedError, match=r"after 4 steps.*3 in a row \(3 in all\)") as raised:
        step_with(engine, 4, (1, math.nan, 1, math.inf))
    assert raised.value.problem.endswith("for the rows row-1, row-3")


def test_too_many_skipped_steps_in_all_end_training() -> None:
    engine = build(process_group(), max_skipped_in_a_row=1, max_skipped_steps=2)
    for step in range(4):
        step_with(engine, step, (math.nan if step % 2 == 0 else 1, 1))
    with pytest.raises(DivergedError, match=r"1 in a row \(3 in all\)"):
        step_with(engine, 4, (math.nan, 1))


def test_an_overflow_of_the_gradient_alone_names_all_rows_of_the_batch() -> None:
    engine = build(process_group(), max_skipped_in_a_row=0)
    for i in range(2):
        loss = engine(*batch(0)).losses.mean()
        loss.register_hook(lambda gradient: gradient * math.inf)
        engine.backward(loss, i == 1, [f"row-{i}-{j}" for j in range(15)])
    with pytest.raises(DivergedError, match=r"the rows row-0-0, row-0-1,.* row-1-4 and 10 more"):
        engine.step()


def test_offloaded_optimizer_state_changes_nothing() -> None:
    rank = process_group()
    settings = EngineSettings(zero_stage=2, offload_optimizer=True)
    engine = Engine(Toy(), OPTIMIZER, SCHEDULE, settings, rank)
    losses = train(engine, rank, range(5), [5, 7])
    assert losses == pytest.approx(PLAIN_LOSSES[:5], abs=2e-5)


def test_frozen_module_has_no_gradients_and_no_training_mode() -> None:
    reward = frozen(Toy(), EngineSettings(precision="bf16"), process_group())
    losses = reward(*batch(0)).losses
    assert not losses.requires_grad
    assert not reward.module.training
    assert next(reward.module.parameters()).dtype == torch.bfloat16
    assert next(reward.module.buffers()).dtype == torch.float32


def test_an_engine_is_freed_with_its_stage() -> None:
    rank = process_group()
    for zero_stage in (0, 1, 2, 3):
        engine = build(rank, zero_stage)
        train(engine, rank, range(2), [5, 7])
        weights = weakref.ref(next(engine.module.parameters()))
        del engine
        gc.collect()
        assert weights() is None, zero_stage


def test_offloading_without_sharding_is_refused() -> None:
    with pytest.raises(ValueError, match="zero_stage"):
        EngineSettings(offload_optimizer=True)


def test_schedules_by_hand() -> None:
    schedule = cosine_with_warmup(total_steps=7, warmup_steps=2, peak=1.0, final_ratio=0.2)
    assert [round(schedule(step), 6) for step in range(8)] == [
        *(0.5, 1.0),  # warm-up: half way, full
        *(1.0, 0.882843, 0.6, 0.317157, 0.2),  # 0.2 + 0.8 * (1 + cos(pi * k / 4)) / 2
        0.2,
    ]
    assert constant(0.3)(17) == 0.3
    with pytest.raises(ValueError, match="warmup_steps 5"):
        cosine_with_warmup(5, 5, 1.0, 0.1)
