"""Flat batches: what is fed, what is predicted, and how ranks share it."""

import numpy as np
import torch

from stages.models.batches import (
    Example,
    by_token_budget,
    collate,
    seed_from,
    share_of_rank,
    shuffled,
)
from stages.runtime.distributed import Rank

CPU = torch.device("cpu")


def rank(index: int, world_size: int) -> Rank:
    return Rank(index, world_size, index, CPU)


def test_rows_predict_the_next_loss_token_of_the_same_document():
    first = Example([1, 10, 11, 12, 2], [False, False, False, True, True])
    second = Example([1, 20, 2], [False, True, True])
    flat = collate([first, second], CPU)
    # fed: 1 10 11 12 | 1 20 ; the last token of a document predicts nothing
    assert flat.tokens.tolist() == [1, 10, 11, 12, 1, 20]
    assert flat.documents.lengths == (4, 2)
    assert flat.rows.tolist() == [2, 3, 4, 5]
    assert flat.targets.tolist() == [12, 2, 20, 2]


def test_first_token_of_a_document_is_never_a_target():
    flat = collate([Example([7, 8], [True, True]), Example([7, 9], [True, True])], CPU)
    assert flat.targets.tolist() == [8, 9]


def test_an_empty_micro_batch_has_no_loss():
    flat = collate([], CPU)
    assert len(flat.tokens) == 1
    assert len(flat.rows) == 0


def test_ranks_share_every_item_once_in_equally_many_micro_batches():
    items = list(range(11))
    shares = [share_of_rank(items, rank(r, 3), micro_batch_size=2) for r in range(3)]
    assert {len(s) for s in shares} == {2}
    assert sorted(i for share in shares for micro in share for i in micro) == items
    assert all(len(micro) <= 2 for share in shares for micro in share)


def test_more_ranks_than_items_still_gives_everyone_a_micro_batch():
    shares = [share_of_rank([5], rank(r, 2), micro_batch_size=4) for r in range(2)]
    assert shares == [[[5]], [[]]]


def test_token_budget_keeps_order_and_lets_a_long_item_stand_alone():
    sizes = [3, 3, 9, 1, 1]
    runs = by_token_budget(range(5), lambda i: sizes[i], budget=6)
    assert runs == [[0, 1], [2], [3, 4]]


def test_orders_depend_on_every_part_of_the_seed_and_on_nothing_else():
    assert np.array_equal(shuffled(50, 1, 2), shuffled(50, 1, 2))
    assert not np.array_equal(shuffled(50, 1, 2), shuffled(50, 1, 3))
    assert seed_from(1, "a") == seed_from(1, "a") != seed_from(1, "b")
    assert 0 <= seed_from(1, "a") < 2**31
