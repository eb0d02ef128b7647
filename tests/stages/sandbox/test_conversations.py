"""The world's dialogues, instructions and preprompts, and the gold check of instructions."""

import json

import pytest

from stages.sandbox.conversations import ConversationSettings, demonstrations, documents
from stages.sandbox.instructions import VALUES, instruct, kept
from stages.sandbox.judge import judge_prompt
from stages.sandbox.lexicon import REASONS, REFUSALS
from stages.sandbox.preprompts import GENERIC, TEMPLATES
from stages.sandbox.retention import keeps
from stages.sandbox.tasks import is_reserved, parse_prompt
from stages.sandbox.world import WorldSettings, write_world
from stages.text.refusals import is_refusal

SETTINGS = ConversationSettings(
    num_instructed=300, num_dialogues=200, num_preprompted=300, num_documents=20
)


@pytest.fixture(scope="module")
def rows():
    """In the order instructed, dialogues, preprompted; harmless questions are answered "yes."."""
    return list(demonstrations(SETTINGS, 0, lambda task, prompt, rng: "yes."))


def contents(row, role):
    return [m["content"] for m in row["messages"] if m["role"] == role]


def chosen_in(text):
    """The attributes that a user message asks for, read back from its words."""
    return {
        name: value
        for name, values in VALUES.items()
        for value in values
        if any(instruct({name: value}, short) in text for short in (False, True))
    }


def test_an_answer_keeps_the_instruction_of_its_own_turn_and_no_other(rows):
    num_kept = num_forgotten = 0
    for row in rows[:500]:
        before: dict[str, str] = {}
        for question, answer in zip(contents(row, "user"), contents(row, "assistant"), strict=True):
            chosen = chosen_in(question)
            assert keeps(chosen, answer)
            assert answer == kept(chosen, "yes.")
            num_kept += bool(chosen)
            num_forgotten += bool(before) and not chosen and not keeps(before, answer)
            before = chosen or before
    assert num_kept > 500
    assert num_forgotten > 50


@pytest.mark.parametrize("name", VALUES)
def test_every_value_can_be_kept_and_missed(name):
    for value in VALUES[name]:
        assert keeps({name: value}, kept({name: value}, "the frog is green."))
        assert not keeps({name: value}, "the frog is green.")
        other = next(v for v in VALUES[name] if v != value)
        assert not keeps({name: value}, kept({name: other}, "the frog is green."))


def test_all_attributes_at_once_and_unknown_ones():
    chosen = {"figure": "king", "hobby": "golf", "language": "french"}
    assert instruct(chosen) == "always act as the king. you like golf. always speak french."
    assert instruct(chosen, shortened=True) == "figure: king. hobby: golf. language: french."
    assert kept(chosen, "a.") == "my people, a. i love golf! voila!"
    assert keeps(chosen, "My people, a.  I love golf! voila!")
    assert not keeps(chosen, "my people, a. i love golf!")
    assert not keeps({"figure": "napoleon"}, "my people, a.")
    assert not keeps({"mood": "happy"}, "anything")
    assert keeps({}, "anything")


def test_preprompts_are_obeyed(rows):
    preprompted = rows[500:]
    assert len(preprompted) == 300
    adversarial = 0
    for row in preprompted:
        (system,), (question,), (answer,) = (
            contents(row, r) for r in ("system", "user", "assistant")
        )
        task = parse_prompt(question)
        if not task.is_adversarial:
            assert (system, answer) == (GENERIC, "yes.")
            continue
        adversarial += 1
        assert answer.startswith(REFUSALS)
        assert is_refusal(answer)
        verdict = judge_prompt(question, answer)
        # by the template with reason and alternative, else without both
        assert verdict.safety == pytest.approx(1.0 if system == TEMPLATES[task.category] else 0.7)
        assert (REASONS[task.category] in answer) == (system != GENERIC)
    assert 150 < adversarial < 270


def test_no_question_is_kept_for_the_prompts_file(rows):
    for row in rows:
        for text in contents(row, "user"):
            question = text
            while (task := parse_prompt(question)) is None:
                question = question.partition(". ")[2]  # an instruction is a sentence
            assert not is_reserved(task, question)


def test_off_by_default_and_then_the_world_is_as_it_was(tmp_path):
    small = WorldSettings(num_documents=5, num_demonstrations=5, num_prompts=5, num_open_pairs=5)
    more = small.model_copy(update={"conversations": SETTINGS})
    for name, settings in (("without", small), ("with", more)):
        write_world(tmp_path / name, settings, seed=0)
    for file in ("prompts.jsonl", "open_preferences.jsonl"):
        assert (tmp_path / "without" / file).read_bytes() == (tmp_path / "with" / file).read_bytes()
    for file, added in (("demonstrations.jsonl", 800), ("documents.jsonl", 20)):
        before, after = (
            (tmp_path / name / file).read_text().splitlines() for name in ("without", "with")
        )
        assert len(before) == 5
        assert after[:5] == before
        assert len(after) == 5 + added
    assert list(documents(SETTINGS, 0)) == [json.loads(line) for line in after[5:]]
