"""Dialogues by hand: where the instruction stands, turn by turn, and what ends one."""

from types import SimpleNamespace

import pytest

from stages.models import dialogues
from stages.models.dialogues import Dialogue, hold, joined_dialogues
from stages.models.sampling import Sample


def texts(messages):
    return [message["content"] for message in messages]


def test_the_instruction_stands_before_every_question_or_before_the_first():
    dialogue = Dialogue("d", ("u1", "u2", "u3"), ("a1", "a2"), "be kind", "Act as Napoleon.")
    assert texts(dialogue.messages("every_turn")) == [
        "be kind",
        "Act as Napoleon. u1",
        "a1",
        "Act as Napoleon. u2",
        "a2",
        "Act as Napoleon. u3",
    ]
    assert texts(dialogue.messages("first_turn"))[1:] == [
        "Act as Napoleon. u1",
        "a1",
        "u2",
        "a2",
        "u3",
    ]
    assert [m["role"] for m in dialogue.messages("first_turn")][:3] == [
        "system",
        "user",
        "assistant",
    ]


def test_only_the_next_open_question_is_asked():
    assert texts(Dialogue("d", ("u1", "u2", "u3"), ("a1",)).messages("first_turn")) == [
        "u1",
        "a1",
        "u2",
    ]
    answered = Dialogue("d", ("u1", "u2"), ("a1", "a2"))
    assert answered.is_answered
    assert texts(answered.messages("first_turn")) == ["u1", "a1", "u2", "a2"]


def row(name, *contents, system=None):
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": c} for i, c in enumerate(contents)
    ]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"prompt_id": name, "messages": messages}


def test_single_questions_are_joined_and_dialogues_stay_as_they_are():
    rows = [row("p1", "q1"), row("h1", "u1", "a1", "u2"), row("p2", "q2"), row("p3", "q3")]
    rows += [row("h2", "u", "a", "v", system="s"), row("p4", "q4"), row("p5", "q5")]
    assert joined_dialogues([*rows, row("p6", "left over")], [2, 3]) == [
        Dialogue("h1", ("u1", "u2"), ("a1",)),
        Dialogue("p1", ("q1", "q2")),
        Dialogue("h2", ("u", "v"), ("a",), "s"),
        Dialogue("p3", ("q3", "q4", "q5")),
    ]


def test_single_questions_are_joined_under_their_own_system_message():
    rows = [row("a", "q1", system="s"), row("b", "q2"), row("c", "q3", system="t")]
    rows += [row("d", "q4", system="s"), row("e", "q5")]
    assert joined_dialogues(rows, [2, 2, 2]) == [
        Dialogue("a", ("q1", "q4"), (), "s"),
        Dialogue("b", ("q2", "q5")),
    ]


@pytest.fixture
def held(monkeypatch):
    """Hold dialogues with a model that numbers its answers, but for those that are scripted."""

    def spell(messages, tokenizer):  # one token a word
        return [word for message in messages for word in message["content"].split()]

    asked = []

    def answer(model, prompts, sampling, tokenizer, seed, *rest):
        asked.append([" ".join(prompt) for prompt in prompts])
        scripted = {"cut": Sample([1], "half an", False), "blank": Sample([1], " ", True)}
        return [scripted.get(prompt[-1], Sample([1], f"a{len(asked)}", True)) for prompt in prompts]

    model = SimpleNamespace(config=SimpleNamespace(max_seq_len=12))
    draw = SimpleNamespace(max_new_tokens=2)
    monkeypatch.setattr(dialogues, "render_prompt", spell)
    monkeypatch.setattr(dialogues, "sample_responses", answer)

    def run(*given, reach="every_turn"):
        return hold(given, reach, model, None, draw, 0, None, 4), asked

    return run


def test_every_answer_is_read_before_the_next_question(held):
    talks, asked = held(
        Dialogue("j", ("u1", "u2", "u3"), instruction="I."),
        Dialogue("h", ("v1", "v2"), ("given",), instruction="J."),
    )
    assert asked == [
        ["I. u1", "J. v1 given J. v2"],
        ["I. u1 a1 I. u2"],
        ["I. u1 a1 I. u2 a2 I. u3"],
    ]
    assert [d.answers for d in talks.dialogues] == [("a1", "a2", "a3"), ("given", "a1")]
    assert (talks.num_without_room, talks.num_cut_off) == (0, 0)


def test_the_instruction_of_the_first_turn_is_not_repeated(held):
    _, asked = held(Dialogue("j", ("u1", "u2"), instruction="I."), reach="first_turn")
    assert asked == [["I. u1"], ["I. u1 a1 u2"]]


@pytest.mark.parametrize("ending", ["cut", "blank"])
def test_a_dialogue_ends_before_an_answer_that_is_none(held, ending):
    talks, asked = held(Dialogue("j", ("u1", ending, "u3")), Dialogue("k", ("v1", "v2")))
    assert [d.questions for d in talks.dialogues] == [("u1",), ("v1", "v2")]
    assert [d.answers for d in talks.dialogues] == [("a1",), ("a1", "a2")]
    assert len(asked) == 2
    assert talks.num_cut_off == 1


def test_a_dialogue_ends_where_the_context_holds_no_more(held):
    talks, asked = held(Dialogue("j", ("one two three", "four five six", "seven eight nine")))
    # 3, then 3 + 1 + 3, then 7 + 1 + 3 = 11 words: 10 fit beside an answer of 2
    assert [len(turn) for turn in asked] == [1, 1, 0]
    assert talks.dialogues[0].answers == ("a1", "a2")
    assert talks.num_without_room == 1
