import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contracts.errors import UserError
from data_contracts.ratings import MARGINS, Domain, Rating, SafetyLabel, Split
from data_contracts.splits import split_of

shares = st.floats(0, 0.5)


@given(st.text(), shares, shares)
def test_case_and_spacing_do_not_move_a_prompt(text, test, validation):
    moved = f"  {text.casefold()}\n"
    assert split_of(moved, test, validation) == split_of(text, test, validation)


@given(st.text(), shares, shares, shares)
def test_the_test_set_does_not_depend_on_the_validation_fraction(text, test, one, other):
    sides = [split_of(text, test, validation) == Split.test for validation in (one, other)]
    assert sides[0] == sides[1]


def test_shares_are_met():
    sides = [split_of(f"prompt {number}", 0.2, 0.1) for number in range(5000)]
    assert sides.count(Split.test) == pytest.approx(1000, abs=120)
    assert sides.count(Split.validation) == pytest.approx(500, abs=90)


def test_the_rule_never_changes():
    # Golden: another answer would put old prompts on other sides.
    sides = "".join(split_of(f"prompt {number}", 0.3, 0.3)[0:2] for number in range(8))
    assert sides == "vatevavatetetrtr"


def test_salt_draws_anew():
    texts = [f"prompt {number}" for number in range(100)]
    assert [split_of(t, 0.5) for t in texts] != [split_of(t, 0.5, salt="x") for t in texts]


@pytest.mark.parametrize(
    ("test", "validation"), [(-0.1, 0), (1.1, 0), (0.6, 0.6), (float("nan"), 0)]
)
def test_impossible_fractions_are_refused(test, validation):
    with pytest.raises(UserError, match="sum is at most 1"):
        split_of("prompt", test, validation)


def test_extremes():
    assert split_of("prompt", 1.0) == Split.test
    assert split_of("prompt", 0.0) == Split.train
    assert split_of("prompt \ud800", 0.0, 1.0) == Split.validation


def test_margins_are_table_27():
    assert list(MARGINS["large"].values()) == [3, 2, 1, 0]
    assert list(MARGINS["small"].values()) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert set(MARGINS["none"].values()) == {0}
    assert all(list(margin) == list(Rating) for margin in MARGINS.values())


def test_vocabularies():
    assert [label.value for label in SafetyLabel] == [
        "chosen_safe_other_unsafe",
        "both_safe",
        "both_unsafe",
    ]
    assert [domain.value for domain in Domain] == ["helpfulness", "safety"]
