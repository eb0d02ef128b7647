import pyarrow as pa
import pytest
from valid_rows import QUESTION, VALID_ROWS

from data_contracts.errors import ContractError, UserError
from data_contracts.parquet import read_table, write_table
from data_contracts.tables import CONTRACTS, contract_named

USER, ASSISTANT, SYSTEM = (
    {"role": role, "content": f"{role} speaks"} for role in ("user", "assistant", "system")
)
UNTRAINED = [{**USER, "loss": False}, {**ASSISTANT, "loss": False}]
NAN = float("nan")
SECRET = "my own secret words"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.parquet"


def write(path, name, *changes):
    contract = CONTRACTS[name]
    row = VALID_ROWS[name]
    rows = [{**row, contract.row_id: f"id-{n}", **change} for n, change in enumerate(changes)]
    return write_table(path, rows, contract)


def test_there_is_a_valid_row_for_every_contract():
    assert list(VALID_ROWS) == list(CONTRACTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_valid_row_round_trips(path, name):
    assert write(path, name, {}, {}) == 2
    table = read_table(path, CONTRACTS[name])
    assert table.schema.metadata == {b"contract": f"{name}/1.0".encode()}
    for column, value in VALID_ROWS[name].items():
        if column != CONTRACTS[name].row_id:
            assert table[column][1].as_py() == value


@pytest.mark.parametrize("name", CONTRACTS)
def test_an_empty_table_is_a_table(path, name):
    assert write_table(path, [], CONTRACTS[name]) == 0
    assert read_table(path, CONTRACTS[name]).schema == CONTRACTS[name].schema


@pytest.mark.parametrize(
    ("name", "column"),
    [
        (name, field.name)
        for name, contract in CONTRACTS.items()
        for field in contract.schema
        if not field.nullable
    ],
)
def test_every_required_column_refuses_null(path, name, column):
    with pytest.raises(ContractError, match="is null in 1 row") as caught:
        write(path, name, {}, {column: None})
    assert caught.value.column == column
    assert not path.exists()


BROKEN = [
    ("documents", "text", " \n\t", "only white space"),
    ("token_shards", "tokens", [], "empty list"),
    ("token_shards", "tokens", [3, None], "null inside"),
    ("token_shards", "tokens", [3, -1], "out of range"),
    ("token_shards", "split", "test", "outside the vocabulary"),
    ("demonstrations", "messages", [{**USER, "loss": False}], "not end with"),
    ("demonstrations", "messages", UNTRAINED, "loss on no message"),
    ("demonstrations", "messages", [{**m, "loss": True} for m in UNTRAINED], "not the assistant"),
    ("demonstrations", "messages", [{**m, "loss": None} for m in UNTRAINED], "null inside"),
    ("prompts", "split", "valid", "outside the vocabulary"),
    ("prompts", "domain", "harmless", "outside the vocabulary"),
    ("prompts", "messages", [], "empty list"),
    ("prompts", "messages", [None], "null inside"),
    ("prompts", "messages", [{"role": "user", "content": None}], "null inside"),
    ("prompts", "messages", [{"role": None, "content": "x"}], "null inside"),
    ("prompts", "messages", [{"role": "user", "content": "  "}], "empty message"),
    ("prompts", "messages", [{"role": "human", "content": "x"}], "does not go"),
    ("prompts", "messages", [USER, ASSISTANT], "does not end"),
    ("prompts", "messages", [USER, USER], "does not go"),
    ("prompts", "messages", [ASSISTANT, USER], "does not go"),
    ("prompts", "messages", [USER, SYSTEM, USER], "does not go"),
    ("prompts", "messages", [SYSTEM], "does not end"),
    ("comparisons", "temperature_a", -0.1, "out of range"),
    ("comparisons", "temperature_b", NAN, "NaN"),
    ("preferences", "chosen", "", "only white space"),
    ("preferences", "rejected", " ", "only white space"),
    ("preferences", "chosen", VALID_ROWS["preferences"]["rejected"], "equals 'rejected'"),
    ("preferences", "rating", "unsure", "outside the vocabulary"),
    ("preferences", "safety_label", "chosen_unsafe_other_safe", "outside the vocabulary"),
    ("preferences", "split", "validation", "outside the vocabulary"),
    ("scored_samples", "reward", NAN, "NaN"),
    ("scored_samples", "safety_score", float("inf"), "NaN or infinite"),
    ("rollouts", "logprobs", [-0.1], "another length"),
    ("rollouts", "values", [0.0, NAN], "NaN"),
    ("rollouts", "response_tokens", [], "empty list"),
    ("evaluations", "gold_safety", NAN, "NaN"),
    ("win_rates", "wins", 7, "differs from"),
    ("win_rates", "win_rate", 1.5, "out of range"),
    ("win_rates", "low", 0.7, "outside its interval"),
    ("accuracies", "num_pairs", 0, "out of range"),
    ("accuracies", "accuracy", 0.95, "outside its interval"),
    ("calibration", "event", "rude", "outside the vocabulary"),
    ("calibration", "predicted", 0.65, "outside its interval"),
]


@pytest.mark.parametrize(("name", "column", "value", "problem"), BROKEN)
def test_broken_rows_are_refused(path, name, column, value, problem):
    with pytest.raises(ContractError, match=problem) as caught:
        write(path, name, {}, {column: value}, {})
    assert (caught.value.count, caught.value.row_ids) == (1, ("id-1",))
    assert caught.value.file == str(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, *QUESTION],
        [USER, ASSISTANT, USER],
        [SYSTEM, USER, ASSISTANT, USER],
        [USER, {"role": "assistant", "content": ""}, USER],
    ],
)
def test_dialogues_that_take_turns_are_accepted(path, messages):
    assert write(path, "prompts", {"messages": messages}, {}, {"messages": messages}) == 3


def test_dialogues_are_told_apart_in_a_slice(path):
    dialogues = [[USER], [USER, ASSISTANT, USER], [ASSISTANT], [SYSTEM, USER], [USER, ASSISTANT]]
    row = {"domain": "safety", "source": "s", "split": "train"}
    table = pa.Table.from_pylist(
        [{**row, "prompt_id": f"id-{n}", "messages": m} for n, m in enumerate(dialogues)],
        schema=CONTRACTS["prompts"].schema,
    )
    for start, bad in ((0, ("id-2",)), (1, ("id-2",)), (2, ("id-2",))):
        with pytest.raises(ContractError, match="does not go") as caught:
            write_table(path, table.slice(start), CONTRACTS["prompts"])
        assert caught.value.row_ids == bad
    with pytest.raises(ContractError, match="does not end") as caught:
        write_table(path, table.slice(3), CONTRACTS["prompts"])
    assert caught.value.row_ids == ("id-4",)
    assert write_table(path, table.slice(0, 2), CONTRACTS["prompts"]) == 2


def test_counts_cover_the_whole_table_and_three_ids_are_named(path):
    with pytest.raises(ContractError) as caught:
        write(path, "preferences", *({"rating": "meh" if n % 2 else None} for n in range(2000)))
    assert (caught.value.count, caught.value.row_ids) == (1000, ("id-1", "id-3", "id-5"))
    assert "in 1,000 rows (first id: id-1, id-3, id-5)" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("chosen", [SECRET]),
        ("batch", SECRET),
        ("rating", SECRET),
        ("messages", [{"role": SECRET, "content": SECRET}]),
        ("messages", [{"role": "user", "content": 3.5}, SECRET]),
        ("chosen", SECRET + "\ud800"),
    ],
)
def test_errors_never_quote_the_value(path, column, value):
    with pytest.raises(ContractError) as caught:
        write(path, "preferences", {}, {column: value})
    error = caught.value
    assert (error.column, error.row_ids) == (column, ("id-1",))
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_repeated_ids_are_refused_across_batches(path):
    contract = CONTRACTS["documents"]
    row = VALID_ROWS["documents"]
    batch = pa.RecordBatch.from_pylist([row], schema=contract.schema)
    with pytest.raises(ContractError, match="repeats an id in 2 rows") as caught:
        write_table(path, iter([batch, batch]), contract)
    assert caught.value.row_ids == ("d1",)


def test_a_row_without_id_is_named_by_its_number(path):
    with pytest.raises(ContractError) as caught:
        write(path, "documents", {}, {}, {"document_id": None})
    assert caught.value.row_ids == ("row 3",)


def test_an_unknown_key_is_refused(path):
    with pytest.raises(ContractError, match=r"'extra': is no part of documents/1.0"):
        write(path, "documents", {"extra": 1})


def test_numbers_that_do_not_fit_are_refused(path):
    with pytest.raises(ContractError, match="not of type int32"):
        write(path, "preferences", {"batch": 2**40})


def test_unknown_contracts_are_named():
    assert contract_named("preferences/1.0") is CONTRACTS["preferences"]
    with pytest.raises(UserError, match=r"Use one of: documents, .*accuracies"):
        contract_named("preference")
