"""Trap 23: Adam's epsilon is left to a library's default, or stands where another library puts it.

When it bites: at 1e-5 it is no detail: a gradient of that size moves a weight half as far as one
far above it, and a result can be repeated with one library only.

Here it is set from the settings, added outside the bias-corrected root, and part of what a stage
is keyed by and recorded with.

Seen to fail with each of these planted in the product:
- epsilon or the betas not passed on (torch's defaults), by the optimizer or by the engine;
- epsilon added before the bias correction, as TensorFlow does, or inside the square root;
- beta1 and beta2 exchanged, or the bias correction left out;
- weight decay on norms, or added to the gradient;
- the learning rate of the step before, or of the peak;
- the constants missing from the stages' configs, or from their keys.
"""

import math

import pytest
import torch
from torch import nn
from trap_ppo import NO_ARTIFACT

from data_contracts.keys import stage_key
from stages import ppo, pretrain, rejection_sampling, reward_model, sft
from stages.runtime.distributed import process_group
from stages.runtime.engine import Engine
from stages.runtime.settings import AdamSettings, EngineSettings, OptimizerSettings

LEARNING_RATE, DECAY = 0.1, 0.5
GRADIENTS = [1e-5, -3e-5, 2e-4, 1e-5]


class Line(nn.Module):
    """A matrix of one weight, which decays, and a vector of one, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((1, 1), 2.0))
        self.vector = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, gradient: float) -> torch.Tensor:
        return (self.matrix.sum() + self.vector.sum()) * gradient


def trained(adam, zero_stage):
    """Both weights of a real engine after each of its steps."""
    settings = EngineSettings(adam=adam, zero_stage=zero_stage)
    optimizer = OptimizerSettings(
        learning_rate=LEARNING_RATE, weight_decay=DECAY, gradient_clipping=0.0
    )
    engine = Engine(
        Line(), optimizer, lambda step: LEARNING_RATE / (step + 1), settings, process_group()
    )
    weights = []
    for gradient in GRADIENTS:
        engine.backward(engine(gradient), last=True)
        engine.step()
        state = engine.full_state()
        weights.append([state["matrix"].item(), state["vector"].item()])
    return weights


def plain(adam):
    """AdamW as its paper has it (Loshchilov & Hutter 2019, algorithm 2), on two numbers."""
    weights, m, v = [2.0, 2.0], 0.0, 0.0
    found = []
    for t, gradient in enumerate(GRADIENTS, start=1):
        m = adam.beta1 * m + (1 - adam.beta1) * gradient
        v = adam.beta2 * v + (1 - adam.beta2) * gradient**2
        corrected, square = m / (1 - adam.beta1**t), v / (1 - adam.beta2**t)
        step = corrected / (math.sqrt(square) + adam.epsilon)
        for i, decay in enumerate((DECAY, 0.0)):
            weights[i] -= LEARNING_RATE / t * (step + decay * weights[i])
        found.append(list(weights))
    return found


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize(
    "adam", [AdamSettings(), AdamSettings(beta1=0.5, beta2=0.7, epsilon=1e-3)], ids=["ours", "set"]
)
def test_every_step_is_that_of_the_paper(zero_stage, adam):
    for found, expected in zip(trained(adam, zero_stage), plain(adam), strict=True):
        assert found == pytest.approx(expected, abs=2e-6)


def test_a_gradient_of_epsilon_moves_half_as_far():
    """By hand, with one gradient throughout: both corrected moments are exact, g and g²."""
    assert AdamSettings() == AdamSettings(beta1=0.9, beta2=0.95, epsilon=1e-5)
    _, vector = trained(AdamSettings(), 0)[0]
    assert vector == pytest.approx(2 - 0.1 * 1e-5 / (1e-5 + 1e-5), abs=1e-6)


CONFIGS = [
    (ppo.Config, "policy helpfulness_rm safety_rm prompts"),
    (pretrain.Config, "token_shards tokenizer"),
    (sft.Config, "init_from demonstrations"),
    (reward_model.Config, "init_from open_preferences"),
]


def config_of(config_type, inputs, **engine):
    values = dict.fromkeys(inputs.split(), NO_ARTIFACT) | {"engine": engine}
    if config_type is reward_model.Config:
        values |= {"preferences": [], "domain": "safety"}
    return config_type.model_validate(values)


@pytest.mark.parametrize(("config_type", "inputs"), CONFIGS)
def test_every_stage_that_trains_is_recorded_and_keyed_with_it(config_type, inputs):
    ours = config_of(config_type, inputs)
    assert ours.model_dump()["engine"]["adam"]["epsilon"] == 1e-5
    other = config_of(config_type, inputs, adam={"epsilon": 1e-8})
    assert stage_key("s", "1", ours) != stage_key("s", "1", other)


def test_rejection_sampling_is_recorded_with_it():
    settings = rejection_sampling.RejectionSamplingSettings()
    assert settings.meaning()["finetuning"]["engine"]["adam"]["epsilon"] == 1e-5
