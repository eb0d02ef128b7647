"""PPO's maths as its papers write it: one response and one token at a time, in Python's floats."""

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def shaped_rewards(
    score: float, logprobs: Numbers, ref_logprobs: Numbers, beta: float
) -> list[float]:
    """-β times the log-ratio at every token of one response, and its score on the last one."""
    rewards = [-beta * (new - ref) for new, ref in zip(logprobs, ref_logprobs, strict=True)]
    rewards[-1] += score
    return rewards


def advantages(rewards: Numbers, values: Numbers, gamma: float, lam: float) -> list[float]:
    """GAE of one response; behind its last token there is nothing."""
    following, found = 0.0, [0.0] * len(rewards)
    for t in reversed(range(len(rewards))):
        next_value = values[t + 1] if t + 1 < len(values) else 0.0
        following = rewards[t] + gamma * next_value - values[t] + gamma * lam * following
        found[t] = following
    return found


def whitened(scores: Numbers) -> list[float]:
    """Mean 0 and variance 1, the variance divided by the count."""
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / len(scores)
    return [(score - mean) / math.sqrt(variance) if variance else 0.0 for score in scores]
