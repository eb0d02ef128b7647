import pytest

from data_contracts.errors import UserError
from data_contracts.ratings import Rating
from stages.importers import instructions, preferences
from stages.importers.reading import EmptyTextError, Record
from stages.importers.rows import Demonstration, Document, Dropped, Preference, Prompt


def record(**fields):
    return Record("f.jsonl", "line 1", fields)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def test_single_turn_formats():
    expected = Demonstration([user("add 1 and 2"), assistant("3")], [False, True])
    assert instructions.qa(record(question="add 1 and 2", answer="3")) == expected
    alpaca = record(instruction="add 1 and 2", input="", output="3")
    assert instructions.alpaca(alpaca) == expected
    with_input = instructions.alpaca(record(instruction="add", input="1, 2", output="3"))
    assert with_input.messages[0] == user("add\n\n1, 2")
    assert instructions.text(record(text=" a\n")) == Document(" a\n")


@pytest.mark.parametrize("missing", ["instruction", "output"])
def test_alpaca_needs_its_fields(missing):
    fields = {"instruction": "a", "output": "b"}
    del fields[missing]
    with pytest.raises(UserError, match=f"f.jsonl, line 1, field '{missing}': is missing"):
        instructions.alpaca(record(**fields))


def test_chat_learns_answers_not_marked_otherwise():
    messages = [system("s"), user("a"), {**assistant("b"), "loss": False}, user("c")]
    row = instructions.chat(record(messages=[*messages, assistant("d")]))
    assert row.learned == [False, False, False, False, True]
    assert row.messages[2] == assistant("b")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("a", "is not a list of messages"),
        ([], "is not a list of messages"),
        ([user("a")], "does not end with a message of the assistant"),
        ([assistant("a")], "roles are not in turn"),
        ([user("a"), user("b"), assistant("c")], "roles are not in turn"),
        ([user("a"), {"role": "bot", "content": "b"}], r"messages\[1\].role.*is not one of"),
        ([user("a"), {"role": "assistant"}], r"messages\[1\].content.*is missing"),
        ([user("a"), assistant("")], r"messages\[1\].content.*is empty"),
        (["a"], r"messages\[0\].*is text where a message"),
        ([user("a"), {**assistant("b"), "loss": "no"}], "loss.*is not true or false"),
        ([user("a"), {**assistant("b"), "loss": False}], "loss to false on every answer"),
    ],
)
def test_malformed_chats(messages, problem):
    with pytest.raises(UserError, match=problem):
        instructions.chat(record(messages=messages))


def test_prompts():
    assert instructions.prompts(record(prompt="a")) == Prompt([user("a")])
    full = record(messages=[system("s"), user("a")], domain="safety", category="c", split="test")
    assert instructions.prompts(full) == Prompt([system("s"), user("a")], "safety", "c", "test")
    with pytest.raises(UserError, match=r"field 'domain'.*Use one of helpfulness, safety"):
        instructions.prompts(record(prompt="a", domain="math"))
    with pytest.raises(UserError, match="does not end with a message of the user"):
        instructions.prompts(record(prompt=[user("a"), assistant("b")]))


def transcript(*turns):
    return "".join(f"\n\n{name}: {text}" for name, text in turns)


def test_hh_prompt_is_the_common_prefix():
    shared = [("Human", "hi"), ("Assistant", "hello"), ("Human", "why?\n\nreally")]
    row = preferences.hh(
        record(
            chosen=transcript(*shared, ("Assistant", "because ")),
            rejected=transcript(*shared, ("Assistant", "because of Human: nature")),
        )
    )
    messages = [user("hi"), assistant("hello"), user("why?\n\nreally")]
    assert row == Preference(messages, "because", "because of Human: nature")


H, A = "Human", "Assistant"


@pytest.mark.parametrize(
    ("chosen", "rejected", "outcome"),
    [
        ([(H, "a"), (A, "b")], [(H, "a"), (A, "b")], "identical_responses"),
        ([(H, "a"), (A, "b")], [(H, "x"), (A, "c")], "differ_in_more_than_the_last_answer"),
        ([(H, "a"), (A, "b"), (A, "c")], [(H, "a"), (A, "d")], "differ_in_more"),
        ([(H, "a"), (A, "b")], [(H, "a"), (A, "b"), (H, "c"), (A, "d")], "differ_in_more"),
        ([(H, "a"), (A, "")], [(H, "a"), (A, "d")], "empty"),
        ([(H, " "), (A, "b")], [(H, " "), (A, "d")], "empty"),
        ([(A, "a"), (H, "b"), (A, "c")], [(A, "a"), (H, "b"), (A, "d")], "roles_out_of_turn"),
        ([(H, "a"), (A, "b"), (A, "c")], [(H, "a"), (A, "b"), (A, "d")], "roles_out_of_turn"),
        ([(A, "b")], [(A, "c")], "roles_out_of_turn"),
    ],
)
def test_hh_rows_that_are_no_pair_are_dropped(chosen, rejected, outcome):
    row = preferences.hh(record(chosen=transcript(*chosen), rejected=transcript(*rejected)))
    assert isinstance(row, Dropped)
    assert row.reason.startswith(outcome)


def test_hh_merges_successive_turns_of_the_prompt():
    shared = [(H, "a"), (A, "b"), (A, "c"), (H, "d")]
    row = preferences.hh(
        record(chosen=transcript(*shared, (A, "x")), rejected=transcript(*shared, (A, "y")))
    )
    assert row.messages == [user("a"), assistant("b\n\nc"), user("d")]


def test_hh_without_roles_is_malformed():
    with pytest.raises(UserError, match='does not start with "Human:"'):
        preferences.hh(record(chosen="hello", rejected=transcript((H, "a"), (A, "b"))))


def alpaca_eval(preference, first="one", second="two"):
    return preferences.alpaca_eval(
        record(
            instruction="q", output_1=first, output_2=second, preference=preference, annotator="j"
        )
    )


def test_alpaca_eval_prefers_the_nearer_output():
    assert (alpaca_eval(1.2).chosen, alpaca_eval(1.2).rejected) == ("one", "two")
    assert (alpaca_eval(2).chosen, alpaca_eval(2).rejected) == ("two", "one")
    assert alpaca_eval(2).annotator == "j"
    assert alpaca_eval(1.5) == Dropped("tie")
    assert alpaca_eval(None) == Dropped("no_preference")
    assert alpaca_eval(1.0, second="one") == Dropped("identical_responses")
    assert alpaca_eval(1.0, second=" ") == Dropped("empty")


@pytest.mark.parametrize("preference", [0.9, 2.1, float("nan"), "1.0", True])
def test_alpaca_eval_preferences_out_of_range(preference):
    with pytest.raises(UserError, match="field 'preference'"):
        alpaca_eval(preference)


@pytest.mark.parametrize(
    ("preference", "rating"),
    [
        (1.0, Rating.significantly_better),
        (1.05, Rating.significantly_better),
        (1.06, Rating.better),
        (1.8, Rating.better),
        (1.79, Rating.slightly_better),
        (1.36, Rating.negligibly_better),
        (1.500001, Rating.negligibly_better),
    ],
)
def test_strength_becomes_a_rating(preference, rating):
    assert preferences.rating_of(preference) == rating


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "b", "rejected": "c"},
        {"prompt": [user("q")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
        {"messages": [user("q")], "chosen": "b", "rejected": [assistant("c")]},
        {"chosen": [user("q"), assistant("b")], "rejected": [user("q"), assistant("c")]},
        {
            "prompt": "q",
            "chosen": [user("q"), assistant("b")],
            "rejected": [user("q"), assistant("c")],
        },
    ],
)
def test_the_forms_of_trl(fields):
    assert preferences.pairs(record(**fields)) == Preference([user("q")], "b", "c")


def test_pairs_carry_what_annotators_said():
    row = preferences.pairs(
        record(
            prompt="q", chosen="b", rejected="c", rating="better", safety_label="both_safe",
            annotator="ann", domain="safety", category="privacy",
        )
    )  # fmt: skip
    assert row == Preference(
        [user("q")], "b", "c", "better", "both_safe", "ann", "safety", "privacy"
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"rating": "much better"}, "field 'rating'.*Use one of significantly_better"),
        ({"safety_label": 1}, "field 'safety_label'"),
        ({"domain": "fun"}, "field 'domain'"),
        ({"chosen": 3}, "field 'chosen': is a number"),
        ({"chosen": [user("x")]}, "is not a message of the assistant"),
        ({"rejected": [user("q"), assistant("c")]}, "not of the same form"),
    ],
)
def test_malformed_pairs(fields, problem):
    with pytest.raises(UserError, match=problem):
        preferences.pairs(record(**{"prompt": "q", "chosen": "b", "rejected": "c", **fields}))


def test_pairs_without_prompt_or_answer():
    with pytest.raises(UserError, match=r"field 'prompt': is missing\. Add the prompt"):
        preferences.pairs(record(chosen="b", rejected="c"))
    with pytest.raises(EmptyTextError):
        preferences.pairs(record(prompt="q", chosen="", rejected="c"))
    same = preferences.pairs(record(prompt="q", chosen="b", rejected="b"))
    assert same == Dropped("identical_responses")


def test_a_transcript_with_the_line_ends_of_windows():
    fields = {
        "chosen": "\r\n\r\nHuman: a\r\nb\r\n\r\nAssistant: no",
        "rejected": "\r\n\r\nHuman: a\r\nb\r\n\r\nAssistant: yes",
    }
    assert preferences.hh(record(**fields)) == Preference([user("a\nb")], "no", "yes")


@pytest.mark.parametrize("mark", [0, 1, "false"])
def test_a_mark_is_true_or_false_and_no_number(mark):
    messages = [user("a"), {**assistant("b"), "loss": mark}]
    with pytest.raises(UserError, match="is not true or false"):
        instructions.chat(record(messages=messages))
