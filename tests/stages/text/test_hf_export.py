import random

import pytest

from stages.text.dialogue import RESERVED, render_demonstration, render_prompt
from stages.text.hf_export import write_hf_files
from stages.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def twins(tokenizer, tmp_path_factory):
    """Our tokenizer and transformers' one, as found beside a Llama model."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("model")
    tokenizer.copy_to(folder)
    write_hf_files(tokenizer, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


def ids(theirs, text):
    return theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def hostile_texts(awkward, count):
    generator = random.Random(0)
    parts = [
        *awkward,
        *RESERVED,
        "<s>",
        "</s>",
        "a",
        " ",
        "  ",
        "the river",
        "\n",
        "7",
        "é",
        "[",
        "<",
    ]
    return ["".join(generator.choices(parts, k=generator.randint(0, 8))) for _ in range(count)]


def test_same_ids_and_text_on_real_lines(twins, real_lines):
    ours, theirs = twins
    for line in real_lines:
        expected = ours.encode(line)
        assert ids(theirs, line) == expected
        assert theirs(line)["input_ids"] == [ours.bos_id, *expected]
        assert theirs.decode(expected) == ours.decode(expected) == line


def test_same_ids_on_hostile_text(twins, awkward_texts):
    ours, theirs = twins
    for text in awkward_texts + hostile_texts(awkward_texts, 500):
        assert ids(theirs, text) == ours.encode(text), text


def test_same_special_ids(twins):
    ours, theirs = twins
    assert len(theirs) == ours.vocab_size
    assert (theirs.unk_token_id, theirs.bos_token_id) == (ours.unk_id, ours.bos_id)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)


def test_chat_template_renders_our_ids(twins, awkward_texts):
    ours, theirs = twins
    texts = hostile_texts(awkward_texts, 1200)
    for i in range(0, len(texts), 4):
        messages = [
            {"role": "system", "content": texts[i]},
            {"role": "user", "content": texts[i + 1]},
            {"role": "assistant", "content": texts[i + 2]},
            {"role": "user", "content": texts[i + 3]},
        ][i % 2 :]
        literal = any(s in m["content"] for m in messages for s in RESERVED)
        if ours.separators is None and literal:
            continue  # documented: a template cannot spell letter by letter
        theirs_of = lambda m: theirs.apply_chat_template(m, return_dict=False)  # noqa: E731
        assert theirs_of(messages) == render_prompt(messages, ours)
        assert theirs_of(messages[:-1]) == render_demonstration(messages[:-1], ours).tokens


def test_chat_template_refuses_roles_out_of_order(twins):
    _, theirs = twins
    with pytest.raises(Exception, match="user and assistant"):
        theirs.apply_chat_template([{"role": "assistant", "content": "a"}])
