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


def test_names_that_begin_with_a_digit_stay_whole_and_emphasis_goes():
    assert listed_values("3D printing\n50 Cent\nchess") == ["3D printing", "50 Cent", "chess"]
    assert listed_values("1. **Golf**\n2) *chess*\n(3) go") == ["Golf", "chess", "go"]


def test_the_last_value_of_a_list_that_was_cut_off_is_left_out():
    assert listed_values("1. golf\n2. Photogr", is_whole=False) == ["golf"]
    assert listed_values("golf, chess, Photo", is_whole=False) == ["golf", "chess"]
    assert listed_values("1. golf\n2. ch\ufffd") == ["golf"]
