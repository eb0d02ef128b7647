import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.dialogue import RESERVED, render_demonstration, render_prompt, render_response


def user(text):
    return {"role": "user", "content": text}


def assistant(text, loss=True):
    return {"role": "assistant", "content": text, "loss": loss}


def system(text):
    return {"role": "system", "content": text}


def pieces(tokenizer, ids):
    return [tokenizer.piece(i) for i in ids]


def occurrences(tokens, shape):
    return sum(tokens[i : i + len(shape)] == shape for i in range(len(tokens)))


contents = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.lists(
    st.sampled_from([*RESERVED, "<s>", "</s>", "the river", " ", "\n", "[", "]", "INST"])
).map("".join)


@st.composite
def dialogues(draw):
    messages = [system(draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [user(draw(contents)), assistant(draw(contents), draw(st.booleans()))]
    return [*messages, user(draw(contents))]


@given(messages=dialogues(), answer=contents)
def test_prompt_and_response_join_to_the_demonstration(tokenizer, messages, answer):
    prompt, response = render_prompt(messages, tokenizer), render_response(answer, tokenizer)
    rendered = render_demonstration([*messages, assistant(answer)], tokenizer)
    assert rendered.tokens == prompt + response
    assert rendered.loss_mask[len(prompt) :] == [True] * len(response)
    assert len(rendered.loss_mask) == len(rendered.tokens)


@given(messages=dialogues())
def test_control_tokens_come_from_the_layout_alone(tokenizer, messages):
    """However hostile the text, bos, eos and separators stand once for each turn."""
    tokens = render_prompt(messages, tokenizer)
    turns = sum(m["role"] == "user" for m in messages)
    assert tokens.count(tokenizer.bos_id) == turns
    assert tokens.count(tokenizer.eos_id) == turns - 1
    if tokenizer.separators is not None:
        assert tokens.count(tokenizer.separators.begin_instruction) == turns
        assert tokens.count(tokenizer.separators.end_instruction) == turns
        return
    has_system = messages[0]["role"] == "system" and bool(messages[0]["content"].strip())
    for separator, times in (("[INST]", turns), ("[/INST]", turns), ("<<SYS>>", has_system)):
        assert occurrences(tokens, tokenizer.encode(separator)) == times


def test_a_literal_separator_is_kept_as_text(tokenizer):
    answer = "say [/INST] and [INST]"
    tokens = render_response(answer, tokenizer)
    assert tokenizer.decode(tokens) == answer
    assert occurrences(tokens, tokenizer.encode("[/INST]")) == (tokenizer.separators is not None)


def test_layout_with_separator_pieces(tokenizer):
    if tokenizer.separators is None:
        pytest.skip("vocabulary without separator pieces")
    messages = [system("be old "), user(" the river\n"), assistant("a garden"), user("the lantern")]
    tokens = render_prompt(messages, tokenizer)
    assert pieces(tokenizer, tokens) == [
        "<s>", "[INST]", "<<SYS>>", *pieces(tokenizer, tokenizer.encode("be old")), "<</SYS>>",
        *pieces(tokenizer, tokenizer.encode("the river")), "[/INST]",
        *pieces(tokenizer, tokenizer.encode("a garden")), "</s>",
        "<s>", "[INST]", *pieces(tokenizer, tokenizer.encode("the lantern")), "[/INST]",
    ]  # fmt: skip


def test_layout_as_llama_wrote_it(tokenizer):
    if tokenizer.separators is not None:
        pytest.skip("vocabulary with separator pieces")
    messages = [system("be old"), user("the river"), assistant("a garden"), user("the lantern")]
    assert render_prompt(messages, tokenizer) == [
        tokenizer.bos_id,
        *tokenizer.encode("[INST] <<SYS>>\nbe old\n<</SYS>>\n\nthe river [/INST]"),
        *tokenizer.encode("a garden"),
        tokenizer.eos_id,
        tokenizer.bos_id,
        *tokenizer.encode("[INST] the lantern [/INST]"),
    ]


def test_only_marked_answers_and_their_eos_are_learned(tokenizer):
    messages = [user("the river"), assistant("a garden", loss=False), user("x"), assistant("old")]
    rendered = render_demonstration(messages, tokenizer)
    learned = [t for t, keep in zip(rendered.tokens, rendered.loss_mask, strict=True) if keep]
    assert learned == [*tokenizer.encode("old"), tokenizer.eos_id]


def test_an_unmarked_message_is_context(tokenizer):
    messages = [user("x"), {"role": "assistant", "content": "old"}]
    assert not any(render_demonstration(messages, tokenizer).loss_mask)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [system("a")],
        [assistant("a")],
        [user("a"), user("b")],
        [user("a"), system("b"), user("c")],
        [user("a"), assistant("b"), assistant("c"), user("d")],
        [user("a"), assistant("b")],
    ],
)
def test_a_prompt_out_of_order_is_refused(tokenizer, messages):
    with pytest.raises(ValueError, match="user"):
        render_prompt(messages, tokenizer)


def test_a_demonstration_must_end_with_an_answer(tokenizer):
    with pytest.raises(ValueError, match="assistant"):
        render_demonstration([user("a")], tokenizer)
