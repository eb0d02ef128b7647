"""Trap 23: Adam's epsilon is left to a library's default, or stands where another library puts it.

At 1e-5 it is no detail: a gradient of that size moves a weight half as far as one far above it.
Set from the settings, added outside the bias-corrected root, and part of what a stage is keyed by.

Planted, and caught by the check below:
- epsilon not passed on (torch's default, 1e-8);
- epsilon added before the bias correction, as TensorFlow does;
- epsilon inside the square root.
"""

import pytest
import torch
from torch import nn

from stages.runtime.modules import adamw
from stages.runtime.settings import OptimizerSettings

SETTINGS = OptimizerSettings(learning_rate=0.1, weight_decay=0.0)
GRADIENT = 1e-5


def ours(num_steps):
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = adamw(module, SETTINGS, SETTINGS.learning_rate, fused=False)
    before = module.weight.item()
    for _ in range(num_steps):
        module.weight.grad = torch.full((1, 1), GRADIENT, dtype=torch.float64)
        optimizer.step()
    return before - module.weight.item()


def check(distance_after):
    """With one gradient throughout, both corrected moments are exact: g and g²."""
    assert pytest.approx(1e-5) == SETTINGS.epsilon
    for num_steps in (1, 2, 10):
        assert distance_after(num_steps) == pytest.approx(num_steps * 0.1 * 0.5, rel=1e-6)


def test_epsilon_is_set_and_outside_the_root():
    check(ours)


def test_epsilon_is_recorded():
    assert SETTINGS.meaning()["epsilon"] == 1e-5


def distance(step):
    """A plain Adam of one weight; step(m, v, t) moves it from the uncorrected moments."""

    def distance_after(num_steps):
        m = v = moved = 0.0
        for t in range(1, num_steps + 1):
            m = 0.9 * m + 0.1 * GRADIENT
            v = 0.95 * v + 0.05 * GRADIENT**2
            moved += 0.1 * step(m, v, t)
        return moved

    return distance_after


def corrected(m, v, t):
    return m / (1 - 0.9**t), v / (1 - 0.95**t)


def outside(m, v, t, epsilon=1e-5):
    mean, square = corrected(m, v, t)
    return mean / (square**0.5 + epsilon)


def as_tensorflow(m, v, t):
    return (1 - 0.95**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + 1e-5)


def inside_the_root(m, v, t):
    mean, square = corrected(m, v, t)
    return mean / (square + 1e-5) ** 0.5


def test_the_plain_adam_without_a_bug_is_right():
    check(distance(outside))


@pytest.mark.parametrize(
    "bug",
    [lambda m, v, t: outside(m, v, t, epsilon=1e-8), as_tensorflow, inside_the_root],
    ids=["torch's default", "TensorFlow's place", "inside the root"],
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(distance(bug))
