"""Ghost Attention: which tokens of a hand-made dialogue are learnt, and the whole stage."""

import pytest
from small_store import CONTEXT, prompt, small_store, small_tokenizer

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.parquet import read_table
from data_contracts.tables import CONTRACTS
from stages import ghost_attention
from stages.ghost_attention import Config, demonstration, has_grown
from stages.models import dialogues
from stages.models.dialogues import Dialogue
from stages.models.sampling import Sample
from stages.text.dialogue import render_demonstration, render_prompt, render_response

FIGURE = {
    "name": "figure",
    "instruction": "Act as {value}.",
    "short": "Figure: {value}.",
    "values": ["Napoleon", "Cleopatra"],
}
ANY = ArtifactRef(digest="0" * 64, kind="checkpoint")
HELD = Dialogue("d", ("the river", "the garden", "the walls"), ("has walls.", "is old.", "30."))


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def config(**changes):
    return Config.model_validate(
        {"version": 4, "prompts": ANY, "policy": ANY, "attributes": [FIGURE], **changes}
    )


@pytest.mark.parametrize("place", ["user_message", "system_message"])
def test_only_the_last_answer_carries_a_loss(tokenizer, place):
    """Token by token: everything before the last answer is 0, its words and its EOS are 1."""
    row = demonstration(config(instruction_as=place), HELD, "Act as Napoleon.")
    assert [m["loss"] for m in row["messages"] if m["role"] == "assistant"] == [False, False, True]
    rendered = render_demonstration(row["messages"], tokenizer)
    last = render_response("30.", tokenizer)
    assert rendered.tokens[-len(last) :] == last
    assert rendered.loss_mask == [False] * (len(rendered.tokens) - len(last)) + [True] * len(last)
    assert rendered.tokens[: -len(last)] == render_prompt(row["messages"][:-1], tokenizer)


def test_the_instruction_stands_in_the_first_turn_only():
    row = demonstration(config(instruction_as="user_message"), HELD, "Figure: Napoleon.")
    contents = [message["content"] for message in row["messages"]]
    assert contents == [
        "Figure: Napoleon. the river",
        "has walls.",
        "the garden",
        "is old.",
        "the walls",
        "30.",
    ]
    row = demonstration(config(instruction_as="system_message"), HELD, "Figure: Napoleon.")
    assert [m["content"] for m in row["messages"]][:2] == ["Figure: Napoleon.", "the river"]
    own = Dialogue("d", HELD.questions, HELD.answers, system="be kind")
    row = demonstration(config(instruction_as="system_message"), own, "Figure: Napoleon.")
    assert row["messages"][0]["content"] == "be kind\nFigure: Napoleon."
    row = demonstration(config(instruction_as="user_message"), own, "Figure: Napoleon.")
    assert [m["content"] for m in row["messages"]][:2] == ["be kind", "Figure: Napoleon. the river"]


def test_a_dialogue_counts_when_its_last_answer_was_given_under_the_instruction():
    asked = Dialogue("j", ("u1", "u2"))
    assert has_grown(asked, Dialogue("j", ("u1", "u2"), ("a1", "a2")))
    assert not has_grown(asked, Dialogue("j", ("u1",), ("a1",)))  # one turn is no dialogue
    given = Dialogue("h", ("u1", "u2", "u3"), ("a1", "a2"))
    assert not has_grown(given, given.shortened())  # its last answer is the publisher's
    assert has_grown(given, Dialogue("h", given.questions, ("a1", "a2", "a3")))


@pytest.fixture
def asked(monkeypatch):
    """Every prompt that the model is shown."""
    shown: list[list[int]] = []

    def recording(model, prompts, *rest, **options):
        shown.extend(prompts)
        return sample(model, prompts, *rest, **options)

    sample = dialogues.sample_responses
    monkeypatch.setattr(dialogues, "sample_responses", recording)
    return shown


def test_the_whole_stage(tmp_path, tokenizer, asked):
    prompts = [prompt(f"p{i}", f"The garden has {i} walls.") for i in range(24)]
    prompts.append(prompt("hh", "The river", "has old walls.", "The garden"))
    prompts.append(prompt("held", "The river has walls.", split="test"))
    work, refs = small_store(tmp_path, prompts)
    settings = config(
        prompts=refs["prompts"],
        policy=refs["policy"],
        num_prompts={"helpfulness": 25},
        max_turns=3,
        max_new_tokens=24,
        instruction_as="user_message",
    )
    output = ghost_attention.run(settings, work)
    folder, kind = output.artifacts["demonstrations"]
    assert kind == "demonstrations/1.0"
    rows = read_table(folder, CONTRACTS["demonstrations"]).to_pylist()
    assert len(rows) == output.metrics["num_demonstrations"] >= 3
    texts = tokenizer.decode([token for tokens in asked for token in tokens])
    assert "river has walls" not in texts  # the test side is not asked
    for row in rows:
        users = [m["content"] for m in row["messages"] if m["role"] == "user"]
        answers = [m for m in row["messages"] if m["role"] == "assistant"]
        assert len(answers) >= 2
        assert users[0].startswith(("Act as ", "Figure: "))
        assert not any("Napoleon" in text or "Cleopatra" in text for text in users[1:])
        assert [m["loss"] for m in answers] == [False] * (len(answers) - 1) + [True]
        figure = "Napoleon" if "Napoleon" in users[0] else "Cleopatra"
        bare = users[0].partition(". ")[2]
        sampled_after = [
            {"role": "user", "content": f"Act as {figure}. {text}"} for text in (bare, *users[1:])
        ]
        # the last answer was drawn with the full instruction before every question
        history = []
        for question, answer in zip(sampled_after, answers, strict=True):
            history += [question, answer]
        assert render_prompt(history[:-1], tokenizer) in asked
    (hh,) = [row for row in rows if row["demonstration_id"] == "gatt-v4-hh"]
    assert hh["messages"][1] == {"role": "assistant", "content": "has old walls.", "loss": False}
    again = ghost_attention.run(settings, work)
    assert read_table(again.artifacts["demonstrations"][0], CONTRACTS["demonstrations"]).equals(
        read_table(folder, CONTRACTS["demonstrations"])
    )


def test_the_chat_model_makes_the_lists(tmp_path, monkeypatch):
    prompts = [prompt(f"p{i}", f"The garden has {i} walls.") for i in range(24)]
    work, refs = small_store(tmp_path, prompts)
    questions = []

    def listing(model, prompts, sampling, tokenizer, *rest, **options):
        questions.extend(tokenizer.decode(p) for p in prompts)
        return [Sample([5], "1. golf\n2. chess\n3. Tennis", True)] * len(prompts)

    monkeypatch.setattr(ghost_attention, "sample_responses", listing)
    hobby = {
        "name": "hobby",
        "instruction": "You enjoy {value}.",
        "short": "Hobby: {value}.",
        "values": ["tennis"],
        "question": "Can you list hobbies?",
    }
    settings = config(
        prompts=refs["prompts"],
        policy=refs["policy"],
        attributes=[hobby],
        max_new_tokens=24,
        num_lists=3,
        max_turns=2,
    )
    metrics = ghost_attention.run(settings, work).metrics
    assert len(questions) == 3
    assert all("Can you list hobbies?" in question for question in questions)
    assert metrics["num_values/hobby"] == 3  # tennis, golf, chess


def test_no_room_for_a_second_turn_is_said(tmp_path):
    work, refs = small_store(tmp_path, [prompt(f"p{i}", "The garden " * 30) for i in range(4)])
    settings = config(prompts=refs["prompts"], policy=refs["policy"], max_new_tokens=150)
    with pytest.raises(UserError, match="came to a second answer within the model's context"):
        ghost_attention.run(settings, work)


LISTED = FIGURE | {"question": "The river has old walls, has it?"}


def of_store(refs, **changes):
    return config(prompts=refs["prompts"], policy=refs["policy"], **changes)


def test_a_question_for_values_that_does_not_fit_is_said_before_anything_is_sampled(tmp_path):
    work, refs = small_store(tmp_path, [prompt(f"p{i}", "The river") for i in range(4)])
    for max_new_tokens in (CONTEXT - 2, CONTEXT):
        asked = of_store(refs, attributes=[LISTED], max_new_tokens=max_new_tokens)
        with pytest.raises(UserError, match=r"question for values of figure.*max_new_tokens"):
            ghost_attention.run(asked, work)


def test_prompts_that_make_no_dialogue_are_explained(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    lonely = prompt("p", "The river")
    lonely["messages"] = [system, *lonely["messages"]]
    work, refs = small_store(tmp_path, [lonely, prompt("q", "The garden")])
    with pytest.raises(UserError, match=r"2 prompts make no dialogue.*same system message"):
        ghost_attention.run(of_store(refs, max_new_tokens=16), work)
