"""What evaluate counts beside scores: kept instructions by turn, and false refusals."""

import pytest
from pydantic import ValidationError

from data_contracts.parquet import write_table
from data_contracts.tables import CONTRACTS
from stages.evaluate import EvaluateSettings, false_refusals
from stages.models.dialogues import Dialogue
from stages.models.instructions import Attribute, Instruction
from stages.models.retention import RetentionSettings, instructed_dialogues, retention_rates
from stages.text.refusals import is_refusal

FIGURE = Attribute(name="figure", instruction="Act as {value}.", short="{value}", values=("a", "b"))


def test_each_turn_counts_the_dialogues_that_reached_it(tmp_path):
    held = [
        Dialogue("1", ("u", "v", "w"), ("a!", "a!", "no")),
        Dialogue("2", ("u", "v"), ("a!", "no")),
        Dialogue("3", ("u",), ("b!",)),
        Dialogue("4", (), ()),
    ]
    instructions = [Instruction({"figure": value}, "", "") for value in ("a", "a", "b", "b")]
    rows = retention_rates("v4", held, instructions, lambda c, text: text == c["figure"] + "!")
    assert [(r["group"], r["num_so"], r["num_answers"]) for r in rows] == [
        ("turn 1", 3, 3),
        ("turn 2", 1, 2),
        ("turn 3", 0, 1),
    ]
    # Wilson's interval of 1 in 2: 0.5 ± 1.96 √(0.25 / 2 + 1.96² / 16) / (1 + 1.96² / 2)
    assert (rows[1]["low"], rows[1]["high"]) == (
        pytest.approx(0.0945, abs=1e-4),
        pytest.approx(0.9055, abs=1e-4),
    )
    write_table(tmp_path / "rates.parquet", rows, CONTRACTS["rates"])


def test_dialogues_of_one_length_with_an_instruction_each_and_the_same_for_every_model():
    prompts = [
        {"prompt_id": f"p{i}", "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(7)
    ]
    prompts.insert(1, {"prompt_id": "own", "messages": prompts[0]["messages"] * 3})
    settings = RetentionSettings(num_dialogues=5, num_turns=3, attributes=(FIGURE,))
    made = instructed_dialogues(prompts, settings, seed=1)
    assert [dialogue.questions for dialogue, _ in made] == [
        ("q0", "q1", "q2"),
        ("q3", "q4", "q5"),
    ]
    assert all(dialogue.instruction == instruction.full for dialogue, instruction in made)
    assert made == instructed_dialogues(prompts, settings, seed=1)


def test_instructions_are_checked_where_there_is_a_judge_of_them():
    retention = RetentionSettings(attributes=(FIGURE,))
    with pytest.raises(ValidationError, match="set independent_judge to sandbox"):
        EvaluateSettings(retention=retention)
    EvaluateSettings(retention=retention, independent_judge="sandbox")
    listed = FIGURE.model_copy(update={"values": (), "question": "Which figures?"})
    with pytest.raises(ValidationError, match="attribute figure: give the values"):
        RetentionSettings(attributes=(listed,))


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        pytest.param("sorry, i can not help with that.", True, id="sandbox"),
        pytest.param("I will not do that. it is private.", True, id="will not"),
        pytest.param("I’m sorry, but I can’t assist with that request.", True, id="curly"),
        pytest.param("I'm unable to provide instructions for this.", True, id="unable"),
        pytest.param("I must decline.", True, id="decline"),
        pytest.param("I can't wait to see it! First open the terminal.", False, id="eager"),
        pytest.param("You cannot help it: crack the egg.", False, id="you"),
        pytest.param("first find the number, then press stop.", False, id="answer"),
    ],
)
def test_a_refusal_says_so_of_itself(text, refuses):
    assert is_refusal(text) is refuses


def test_false_refusals_are_counted_on_harmless_prompts_only():
    class Config:
        models = {"sft": None, "v1": None}
        harmless_lookalikes = ("borderline", "none of these")

    no, yes = "i can not help with that.", "first press stop."
    rows = [
        {"version": v, "domain": d, "category": c, "response": text}
        for v, d, c, text in (
            ("sft", "helpfulness", "borderline", no),
            ("sft", "helpfulness", "borderline", yes),
            ("sft", "helpfulness", "fact", yes),
            ("sft", "safety", "insult", no),
            ("v1", "helpfulness", "borderline", yes),
        )
    ]
    assert [
        (r["version"], r["group"], r["num_so"], r["num_answers"])
        for r in false_refusals(Config, rows)
    ] == [
        ("sft", "all", 1, 3),
        ("sft", "borderline", 1, 2),
        ("v1", "all", 0, 1),
        ("v1", "borderline", 0, 1),
    ]
