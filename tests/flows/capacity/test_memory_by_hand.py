"""Bytes of a rank, worked out by hand from the table in docs/capacity.md."""

import pytest

from flows.capacity.memory import (
    State,
    boundary,
    frozen_weights,
    gathered_weights,
    kv_cache,
    num_parameters,
    plain_copy,
    reduction,
    trained_state,
    zero_stage,
)
from flows.recipe import load_recipe
from kernels.model import ModelConfig
from stages.runtime.engine import EngineSettings

PARAMETERS_7B = 6_738_415_616
"""2 · 32000 · 4096 + 32 · (4 · 4096² + 3 · 4096 · 11008 + 2 · 4096) + 4096."""
PARAMETERS_70B = 68_976_648_192
"""2 · 32000 · 8192 + 80 · (2 · 8192² + 2 · 8192 · 1024 + 3 · 8192 · 28672 + 2 · 8192) + 8192."""


def model(name: str) -> ModelConfig:
    return load_recipe(name).pretrain.model.config(32_000)


def engine(zero: int, precision: str = "bf16", **settings: bool) -> EngineSettings:
    values = {"zero_stage": zero, "precision": precision, **settings}
    return EngineSettings.model_validate(values)


def test_parameters() -> None:
    assert num_parameters(model("7b"), "policy") == PARAMETERS_7B
    assert num_parameters(model("70b"), "policy") == PARAMETERS_70B
    # the output layer, 32000 · 4096, gives way to one row of 4096
    assert num_parameters(model("7b"), "scorer") == PARAMETERS_7B - 131_072_000 + 4096


def test_7b_with_zero_2_on_8_gpus() -> None:
    state = trained_state(PARAMETERS_7B, engine(2), 8)
    assert state == State(
        weights=13_476_831_232,  # 2 bytes
        gradients=5_053_811_712,  # (4 + 2) / 8
        optimizer=10_107_623_424,  # (4 + 4 + 4) / 8
    )
    assert state.on_card == 28_638_266_368


@pytest.mark.parametrize(
    ("settings", "weights", "gradients", "optimizer"),
    [
        (engine(0), 2, 6, 1.5),  # bf16 has masters from ZeRO-1 on, and so runs as that
        (engine(1), 2, 6, 1.5),
        (engine(2), 2, 0.75, 1.5),
        (engine(3), 0.25, 0.5, 1.5),
        (engine(0, "fp32"), 4, 4, 8),
        (engine(1, "fp32"), 4, 4.5, 1.5),
        (engine(2, "fp32"), 4, 1, 1.5),
        (engine(3, "fp32"), 0.5, 0.5, 1.5),
    ],
)
def test_bytes_of_a_parameter_on_8_gpus(
    settings: EngineSettings, weights: float, gradients: float, optimizer: float
) -> None:
    state = trained_state(8_000, settings, 8)
    expected = State(int(8_000 * weights), int(8_000 * gradients), int(8_000 * optimizer))
    assert state == expected


def test_an_offloaded_optimizer_is_the_hosts() -> None:
    assert trained_state(8_000, engine(2, offload_optimizer=True), 8) == State(
        16_000, 6_000, 0, host=18_000
    )
    assert trained_state(8_000, engine(3, offload_optimizer=True), 8) == State(
        2_000, 0, 0, host=20_000
    )


def test_one_rank_has_nothing_to_share_with() -> None:
    assert zero_stage(engine(3), 1) == 2
    assert trained_state(1_000, engine(3), 1) == State(2_000, 6_000, 12_000)
    assert plain_copy(1_000, engine(3), 1) == 0
    assert gathered_weights(1_000, engine(3), 1) == 0
    assert boundary(1_000, engine(1), 1) == 0


def test_models_beside_the_trained_one() -> None:
    assert frozen_weights(8_000, engine(3), 8) == 2_000
    assert frozen_weights(8_000, engine(2), 8) == 16_000
    assert plain_copy(8_000, engine(3), 8) == 16_000
    assert plain_copy(8_000, engine(2), 8) == 0


def test_buffers_of_the_collectives() -> None:
    seven, largest = model("7b"), 32_000 * 4096
    assert gathered_weights(PARAMETERS_7B, engine(3), 8) == 2 * (1_000_000_000 + 50_000_000)
    assert reduction(seven, PARAMETERS_7B, engine(2), 8) == 2 * 2 * (50_000_000 + largest)
    assert reduction(seven, PARAMETERS_7B, engine(3), 8) == 2 * (50_000_000 + 3 * largest)
    assert boundary(PARAMETERS_7B, engine(1), 8) == 4 * PARAMETERS_7B
    assert boundary(PARAMETERS_7B, engine(0, "fp32"), 8) == 4 * 500_000_000
    assert boundary(PARAMETERS_7B, engine(2), 8) == 0


def test_keys_and_values() -> None:
    # 2 · 32 layers · 32 heads · 128 · 2 bytes = 512 KiB a token; 70B has 8 key-value heads
    assert kv_cache(model("7b"), 2, num_rows=1, num_columns=1) == 524_288
    assert kv_cache(model("70b"), 2, num_rows=16, num_columns=2048) == 16 * 2048 * 327_680
