import hashlib
import math
import pickle
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.errors import ContractError, UserError
from data_contracts.keys import canonical_json, stage_key

ONE, TWO = (ArtifactRef(digest=digit * 64, kind="preferences/1.0") for digit in "12")


class Color(StrEnum):
    red = "red"


class Inner(Contract):
    rate: float = 1e-5
    port: int = Field(4200, json_schema_extra={"in_key": False})


class Config(StageConfig):
    inner: Inner = Inner()
    inputs: dict[str, ArtifactRef] = {"model": ONE}
    earlier: list[ArtifactRef] = []
    by_color: dict[Color, float] = {Color.red: 0.5}
    folder: Path = Path("a/b")
    num_processes: int = Field(1, json_schema_extra={"in_key": False})


class Reordered(StageConfig):
    folder: Path = Path("a/b")
    by_color: dict[Color, float] = {Color.red: 0.5}
    earlier: list[ArtifactRef] = []
    inputs: dict[str, ArtifactRef] = {"model": ONE}
    inner: Inner = Inner()


def key(config, stage="sft", version="1"):
    return stage_key(stage, version, config)


def test_contracts_are_frozen_and_closed():
    with pytest.raises(ValidationError):
        Inner(rate=1.0, unknown=2)  # pyright: ignore
    with pytest.raises(ValidationError):
        Inner().rate = 2.0  # pyright: ignore


def test_meaning_leaves_out_what_is_not_in_the_key_at_every_depth():
    assert Config().meaning() == {
        "seed": 0,
        "inner": {"rate": 1e-5},
        "inputs": {"model": {"digest": "1" * 64, "kind": "preferences/1.0"}},
        "earlier": [],
        "by_color": {"red": 0.5},
        "folder": "a/b",
    }


def test_not_a_number_survives_json():
    class Metrics(Contract):
        values: list[float]

    text = Metrics(values=[math.nan, math.inf]).model_dump_json()
    back = Metrics.model_validate_json(text).values
    assert math.isnan(back[0])
    assert back[1] == math.inf


def test_the_key_is_known_by_hand():
    assert canonical_json({"b": [1.0, -0.0, 0.1], "a": None}) == b'{"a":null,"b":[1,0,0.1]}'
    spelled = b'{"config":{"seed":0},"stage":"sft","stage_version":"1"}'
    assert key(StageConfig()) == hashlib.sha256(spelled).hexdigest()


def test_the_key_ignores_field_order_and_unkeyed_fields():
    same = key(Config())
    assert key(Reordered()) == same
    assert key(Config(num_processes=8, inner=Inner(port=1))) == same
    assert len(same) == 64


@pytest.mark.parametrize(
    "other",
    [
        Config(seed=1),
        Config(inner=Inner(rate=1.0000001e-5)),
        Config(inputs={"model": TWO}),
        Config(inputs={"base": ONE}),
        Config(inputs={"model": ArtifactRef(digest="1" * 64, kind="preferences/1.1")}),
        Config(earlier=[ONE]),
        Config(by_color={}),
        Config(folder=Path("a")),
    ],
)
def test_the_key_changes_with_every_meaning_field(other):
    assert key(other) != key(Config())


def test_the_key_changes_with_stage_version_and_order_of_a_list():
    assert len({key(Config()), key(Config(), stage="ppo"), key(Config(), version="2")}) == 3
    assert key(Config(earlier=[ONE, TWO])) != key(Config(earlier=[TWO, ONE]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_ignores_insertion_order(value):
    def backwards(item):
        if isinstance(item, dict):
            return {name: backwards(item[name]) for name in reversed(item)}
        return [backwards(part) for part in item] if isinstance(item, list) else item

    assert canonical_json(backwards(value)) == canonical_json(value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False))
def test_different_floats_have_different_keys(one, other):
    assert (one == other) == (key(Inner(rate=one)) == key(Inner(rate=other)))


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_float_is_the_integer(number):
    assert canonical_json(float(number)) == canonical_json(number)


def test_a_user_error_is_one_paragraph():
    error = UserError("The disk\n is full", "Free some space.")
    assert str(error) == "The disk is full. Free some space."
    assert isinstance(error, ValueError)


def test_errors_cross_processes():
    error = ContractError("f.parquet", "rating", "is bad", 5, ["a", "b"], "Fix it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert str(error) == "f.parquet: column 'rating': is bad in 5 rows (first id: a, b). Fix it."
    assert (again.file, again.column, again.count) == ("f.parquet", "rating", 5)


def test_an_id_that_is_really_text_is_cut():
    assert "z" * 60 not in str(ContractError("f", "c", "is bad", 1, ["z" * 500], "Fix"))


def test_refs_refuse_what_is_no_digest_or_kind():
    for digest, kind in (("abc", "files"), ("1" * 64, "Files"), ("1" * 64, "files/../x")):
        with pytest.raises(ValidationError):
            ArtifactRef(digest=digest, kind=kind)
