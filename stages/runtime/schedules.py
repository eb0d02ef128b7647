"""Learning rate as a function of the step: made once, asked before every update.

A schedule is called with the number of updates already made, so `schedule(0)` is the learning rate
of the first one.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def cosine_with_warmup(
    total_steps: int, warmup_steps: int, peak: float, final_ratio: float
) -> Schedule:
    """Linear warm-up to `peak`, then a cosine down to `final_ratio * peak` at the last step (§2.2).

    The first update already has peak / warmup_steps, never 0; steps past the last stay at the end.
    Raises ValueError when the warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps {warmup_steps} must be in [0, total_steps={total_steps}): "
            "shorten the warm-up or train for more steps"
        )

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
        return peak * (final_ratio + (1.0 - final_ratio) * cosine)

    return learning_rate


def constant(learning_rate: float) -> Schedule:
    """The same learning rate at every step (PPO, §3.4.3)."""
    return lambda step: learning_rate
