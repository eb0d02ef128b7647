"""The words' baseline learns what words can tell, and is scored as a reward model is."""

import numpy as np
import pytest

from benchmarks.bag_of_words import VECTORIZERS, points, regression_points


def pair(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("name", VECTORIZERS)
def test_a_word_that_people_like_is_learnt_and_a_strange_one_is_a_tie(name: str):
    train = [pair(f"kind thing {i}", f"rude thing {i}") for i in range(20)]
    held_out = [pair("kind reply", "rude reply"), pair("rude no", "kind no"), pair("so", "or")]
    found = regression_points(VECTORIZERS[name](), train, held_out)
    assert found.tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("name", VECTORIZERS)
def test_it_prefers_no_side(name: str):
    train = [pair(f"kind thing {i}", f"rude thing {i}") for i in range(20)]
    held_out = [pair("kind reply", "a rude reply"), pair("kind", "rude rude")]
    turned = [pair(row["rejected"], row["chosen"]) for row in held_out]
    own = regression_points(VECTORIZERS[name](), train, held_out)
    assert np.allclose(own + regression_points(VECTORIZERS[name](), train, turned), 1)


def test_points_are_one_for_a_pair_ranked_right_and_half_for_a_tie():
    assert points(np.array([0.3, -2.0, 0.0])).tolist() == [1.0, 0.0, 0.5]
