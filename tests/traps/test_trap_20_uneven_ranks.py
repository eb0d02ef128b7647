"""Trap 20: ranks drop different numbers of samples, and one waits for ever for the other.

When it bites: from ZeRO-2 on every backward pass is a meeting of all ranks, from ZeRO-3 on every
forward pass; the run hangs without an error until a timeout hours later.

Five rows over two ranks are three and two, one row is one and none: training steps of SFT, of the
reward model and of PPO, and measuring without gradients, must end, and give what one process does.

Planted, and caught by the check below:
- ranks that cut micro-batches of what they have, with no empty one for those that ran out;
- a rank that drops rows after they were dealt out;
- ranks that run as many forward passes as their own rows need.
"""

import pytest
import torch.multiprocessing as mp
from sharded_ranks import (
    STAGES,
    both_programs,
    each_rank_drops_its_own_rows,
    on_two_ranks,
    ranks_cut_only_what_they_have,
    ranks_measure_only_what_they_have,
    uneven,
    uneven_at,
)

from stages.runtime.distributed import process_group


@pytest.fixture(scope="module")
def alone():
    return uneven_at(process_group(), 0)


def check(found, alone):
    for zero_stage in STAGES:
        ranks = found[str(zero_stage)]
        assert ranks.keys() == alone.keys()
        for name in ("sft", "reward", "scores", "logprobs"):
            assert ranks[name] == pytest.approx(alone[name], abs=1e-4), name
        for losses, expected in zip(ranks["ppo"], alone["ppo"], strict=True):
            assert losses == pytest.approx(expected, abs=1e-4)


def test_uneven_ranks_end_and_give_what_one_process_gives(alone):
    check(both_programs()["uneven"], alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        ranks_cut_only_what_they_have,
        each_rank_drops_its_own_rows,
        ranks_measure_only_what_they_have,
    ],
)
def test_planted_bugs_are_caught(alone, bug):
    failed = (mp.ProcessExitedException, mp.ProcessRaisedException)
    with pytest.raises(failed, match=r"SIGABRT|Timed out|closed by peer"):
        check(on_two_ranks(uneven, bug), alone)
