"""Trap 18: a reward or value head's initial weights are lost when ZeRO shards them.

When it bites: a parameter that ZeRO-3 has sharded is empty, so what draws weights into it draws
nothing, and the head starts from whatever was there.

On two ranks, at every stage and in bf16, the head must be to the last bit the one that was made
before sharding. (Ranks that draw with seeds of their own do no harm: DeepSpeed hands out rank 0's
weights.)

Planted, and caught by the check below:
- weights drawn into the head after sharding;
- a head left at zero.
"""

import pytest
import torch
from sharded_ranks import (
    CONFIG,
    both_programs,
    head_is_drawn_after_sharding,
    head_is_left_at_zero,
    heads,
    new_head_models,
    on_two_ranks,
)

STD = (CONFIG.dim + 1) ** -0.5


def check(found):
    assert len(found) == 12
    for name, weights in found.items():
        expected = new_head_models()[name.split()[-1]].score.weight.flatten().tolist()
        assert weights == expected, name
        assert torch.tensor(weights).std() == pytest.approx(STD, rel=0.4), name


def test_heads_survive_sharding():
    check(both_programs()["heads"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        head_is_drawn_after_sharding,
        head_is_left_at_zero,
    ],
)
def test_planted_bugs_are_caught(bug):
    found = on_two_ranks(heads, bug)
    with pytest.raises(AssertionError):
        check(found)
