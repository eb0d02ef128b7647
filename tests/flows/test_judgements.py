"""What people and outside models have said stays in the home, each under a name of its own."""

from pathlib import Path

import pytest

from annotation.evaluation.verdicts import Rating
from data_contracts.errors import StoreError, UserError
from data_contracts.store import Store
from flows.judgements import Judgement, check_judge, judged, keep, read_judgements, read_win_rates


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


def say(
    store: Store, judge: str = "people", kind: str = "people", degree: int = 1, **counts
) -> Judgement:
    """A judgement of helpfulness, kept."""
    return say_of(store, "helpfulness", judge, kind, degree, **counts)


def say_of(store: Store, domain: str, judge: str, kind: str, degree: int, **counts) -> Judgement:
    ratings = [Rating(f"p{i}", domain, "ann", degree) for i in range(3)]
    found, _ = judged(ratings, "v2", "v1", judge, kind, {"ratings": 3, **counts})
    name = keep(store, found)
    return next(j for j in read_judgements(store) if j.name == name)


def test_the_other_domain_stays_when_one_is_judged_again(store):
    say_of(store, "safety", "people", "people", 1, raters=2)
    both = say_of(store, "helpfulness", "people", "people", -1, raters=3)
    assert set(both.games) == {"safety", "helpfulness"}
    assert both.counts == {"ratings": 6, "raters": 3}, "the raters may be the same people"
    again = say_of(store, "helpfulness", "people", "people", 1, raters=3)
    assert again.counts == {"ratings": 3, "raters": 3}
    rows = {row["domain"]: row for row in read_win_rates(store)}
    assert (rows["safety"]["wins"], rows["helpfulness"]["wins"]) == (3, 3)


def test_names_that_look_alike_in_a_file_name_are_two_judges(store):
    names = ["Müller", "Möller", "M-ller", "张伟", "王芳", "x" * 300]
    for name in names:
        say(store, name)
    assert sorted(j.judge for j in read_judgements(store)) == sorted(names)
    assert len(read_win_rates(store)) == len(names)


def test_a_model_does_not_take_the_place_of_people(store):
    say(store, "people", "people")
    with pytest.raises(UserError, match="is a judge of this home already: people"):
        check_judge(store, "people", "model")
    with pytest.raises(UserError, match="judge of evaluate's"):
        check_judge(store, "gold", "model")
    with pytest.raises(UserError, match="already"):
        say(store, "people", "model", degree=-1)
    (row,) = read_win_rates(store)
    assert row["wins"] == 3


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_damaged_file_is_named(store, suffix):
    name = say(store).name
    store.write(f"judgements/{name}.{suffix}", b"{torn")
    with pytest.raises(StoreError, match=f"judgements/{name}.{suffix} .* is damaged"):
        (read_judgements if suffix == "json" else read_win_rates)(store)
