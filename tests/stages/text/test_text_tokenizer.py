import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contracts.errors import UserError
from stages.text.tokenizer import MODEL_FILE, SEPARATORS, Tokenizer
from stages.text.training import train_bpe

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁")) | st.lists(
    st.sampled_from(
        ["\n", "\t ", "é日😀", "\x00", "<0x41>", "</s>", *SEPARATORS, "the", " ", "<", "[", "/"]
    )
).map("".join)


@given(text=texts)
def test_text_round_trips_and_never_becomes_control_pieces(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_control(i) or i == tokenizer.unk_id for i in ids)


def test_awkward_texts_round_trip(tokenizer, awkward_texts):
    assert [tokenizer.decode(tokenizer.encode(text)) for text in awkward_texts] == awkward_texts


def test_digits_stand_alone(tokenizer):
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("2024 or 37")]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("202437")


def test_decoding_skips_control_pieces_and_marks_broken_utf8(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("a garden"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "a garden"
    half_a_letter = next(i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == "<0xC3>")
    assert "\ufffd" in tokenizer.decode([half_a_letter])


def test_many_texts_encode_as_each(tokenizer, awkward_texts):
    expected = [tokenizer.encode(text) for text in awkward_texts]
    assert [ids.tolist() for ids in tokenizer.encode_many(awkward_texts)] == expected


@given(text=texts, start=st.integers(0, 20), size=st.integers(0, 20))
def test_spelled_spans_decode_alike(tokenizer, text, start, size):
    assert tokenizer.decode(tokenizer.encode_spelled(text, [(start, start + size)])) == text


def test_special_ids_are_those_of_llama(tokenizer):
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.pad_id not in (tokenizer.bos_id, tokenizer.eos_id)


def test_training_is_deterministic_and_of_the_size_asked_for(corpus):
    first, second = (train_bpe(corpus, 400) for _ in range(2))
    assert first == second
    assert Tokenizer.from_bytes(first).vocab_size == 400


def test_sizes_that_cannot_be_are_answered_with_the_nearest(corpus):
    with pytest.raises(UserError, match=r"Set vocab_size to (\d+) or less") as too_large:
        train_bpe(corpus, 100_000)
    largest = int("".join(c for c in too_large.value.remedy.split("or less")[0] if c.isdigit()))
    assert Tokenizer.from_bytes(train_bpe(corpus, largest)).vocab_size == largest
    with pytest.raises(UserError, match="at least") as too_small:
        train_bpe(corpus, 270)
    smallest = int("".join(c for c in too_small.value.remedy.split(",")[0] if c.isdigit()))
    assert Tokenizer.from_bytes(train_bpe(corpus, smallest)).vocab_size == smallest


def test_long_documents_and_tabs_are_learned_from():
    document = "lantern\tlantern " * 4000
    pieces = Tokenizer.from_bytes(train_bpe([document], 285))
    assert len(pieces.encode("lantern lantern")) == 2


def test_copying_and_loading(tokenizer, tmp_path):
    tokenizer.copy_to(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    loaded = Tokenizer.load(tmp_path / "model")
    loaded.copy_to(tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [
        MODEL_FILE,
        "tokenizer_config.json",
    ]
    text = "the old river"
    assert Tokenizer.load(tmp_path / "copy" / MODEL_FILE).encode(text) == tokenizer.encode(text)


def test_missing_and_broken_models_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.model does not exist"):
        Tokenizer.load(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)
