"""Instructions: attributes, their lists, and random combinations."""

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from stages.models.instructions import PAPER_ATTRIBUTES, Attribute, combine, listed_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        pytest.param("1. Tennis\n2) golf.\n(3) Chess;", ["Tennis", "golf", "Chess"], id="numbers"),
        pytest.param("- tea\n* tea making\n• TEA", ["tea", "tea making"], id="bullets"),
        pytest.param("French, German, and so on for many more.", ["French", "German"], id="commas"),
        pytest.param("Sure!\nHere are 20 hobbies:\n\ngolf\n", ["golf"], id="preface"),
        pytest.param(" \n..\n", [], id="nothing"),
    ],
)
def test_what_a_list_names(text, values):
    assert listed_values(text) == values


def test_an_instruction_has_its_attributes_in_order_in_full_and_short():
    values = {"hobby": ["golf"], "language": ["Dutch"], "figure": ["Napoleon"]}
    rng = np.random.default_rng(0)
    full = {len(i.chosen): i for i in (combine(PAPER_ATTRIBUTES, values, rng) for _ in range(50))}
    assert full[3].full == (
        "You enjoy golf. Always speak in Dutch. Always act as Napoleon from now on."
    )
    assert full[3].short == "Hobby: golf. Language: Dutch. Figure: Napoleon."
    assert full[3].chosen == {"hobby": "golf", "language": "Dutch", "figure": "Napoleon"}


def test_every_number_of_attributes_and_every_value_comes_equally_often():
    values = {"hobby": ["a", "b"], "language": ["c"], "figure": ["d"]}
    rng = np.random.default_rng(1)
    drawn = [combine(PAPER_ATTRIBUTES, values, rng).chosen for _ in range(3000)]
    numbers = Counter(len(chosen) for chosen in drawn)
    assert all(abs(numbers[n] - 1000) < 100 for n in (1, 2, 3))
    hobbies = Counter(chosen["hobby"] for chosen in drawn if "hobby" in chosen)
    assert abs(hobbies["a"] - 1000) < 120
    assert abs(hobbies["b"] - 1000) < 120


def test_values_with_braces_are_text():
    attribute = Attribute(
        name="x", instruction="Be {value}. {other}", short="{value}", values=("v",)
    )
    made = combine([attribute], {"x": ["{value}{0}"]}, np.random.default_rng(0))
    assert made.full == "Be {value}{0}. {other}"


def test_an_attribute_needs_a_place_and_a_source():
    with pytest.raises(ValidationError, match=r"write \{value\}"):
        Attribute(name="x", instruction="Be kind.", short="{value}", values=("v",))
    with pytest.raises(ValidationError, match="give values"):
        Attribute(name="x", instruction="{value}", short="{value}")
