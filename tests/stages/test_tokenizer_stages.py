import json

import pyarrow.parquet as pq
import pytest

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.parquet import read_table, write_table
from data_contracts.store import Store
from data_contracts.tables import CONTRACTS
from stages import tokenize_corpus, tokenizer
from stages.runtime.stage import run_stage
from stages.text.hf_export import fast_tokenizer
from stages.text.tokenizer import MODEL_FILE, Tokenizer
from stages.text.training import train_bpe

TEXTS = [
    f"The {noun} has {i} {noun}s, and it is {mood}.\n\n\té – done\n"
    for i in range(50)
    for noun in ("garden", "lantern", "river")
    for mood in ("old", "very quiet")
]


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "home")


def publish_documents(store, folder, texts, source="corpus"):
    rows = [
        {"document_id": f"d{i}", "source": source, "text": text} for i, text in enumerate(texts)
    ]
    folder.mkdir()
    write_table(folder / "documents.parquet", rows, CONTRACTS["documents"])
    return store.publish(folder, CONTRACTS["documents"].kind)


@pytest.fixture
def documents(store, tmp_path):
    return publish_documents(store, tmp_path / "documents", TEXTS)


def trained(store, documents, **settings) -> ArtifactRef:
    config = tokenizer.Config(documents=documents, **{"vocab_size": 390, **settings})
    return run_stage("tokenizer", config, store).manifest.outputs["tokenizer"]


def test_a_vocabulary_of_the_size_asked_for_with_separators(store, documents):
    folder = store.local(trained(store, documents))
    ours = Tokenizer.load(folder)
    assert ours.vocab_size == 390
    assert ours.separators is not None
    assert sorted(p.name for p in folder.iterdir()) == [
        "tokenizer.json",
        MODEL_FILE,
        "tokenizer_config.json",
    ]
    assert "chat_template" in json.loads((folder / "tokenizer_config.json").read_text())


def test_training_again_gives_the_same_artifact(store, documents, tmp_path):
    again = Store.open(tmp_path / "other")
    copy = publish_documents(again, tmp_path / "copy", TEXTS)
    assert trained(store, documents) == trained(again, copy)


def test_documents_beyond_the_limit_are_sampled(store, documents):
    folder = store.local(documents)
    size = sum(len(text.encode()) for text in TEXTS)
    everything = list(tokenizer.training_texts(folder, size))
    half = list(tokenizer.training_texts(folder, size // 2))
    assert everything == TEXTS
    assert 0.35 * size < sum(len(text.encode()) for text in half) < 0.65 * size
    assert half == list(tokenizer.training_texts(folder, size // 2))


def test_a_vocabulary_too_large_is_a_user_error(store, documents):
    with pytest.raises(UserError, match=r"too few for a vocabulary of 32000.*\d+ or less"):
        trained(store, documents, vocab_size=32_000)


def test_an_empty_corpus_is_a_user_error(store, tmp_path):
    empty = publish_documents(store, tmp_path / "empty", [])
    with pytest.raises(UserError, match="documents"):
        trained(store, empty)


def test_an_existing_model_is_taken_as_it_is(store, documents, tmp_path):
    model = train_bpe(TEXTS, 380, separator_pieces=False)
    (tmp_path / "llama.model").write_bytes(model)
    folder = store.local(trained(store, documents, existing={"path": tmp_path / "llama.model"}))
    assert (folder / MODEL_FILE).read_bytes() == model
    assert Tokenizer.load(folder).separators is None
    assert (folder / "tokenizer.json").is_file()


def test_an_existing_file_that_is_no_model_is_a_user_error(store, documents, tmp_path):
    (tmp_path / "llama.model").write_bytes(b"{}")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        trained(store, documents, existing={"path": tmp_path / "llama.model"})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"remove_extra_whitespaces": True}, "does not give every text back"),
        ({"byte_fallback": False}, "does not give every text back"),
        ({"model_type": "unigram"}, "cannot be written for transformers"),
    ],
)
def test_models_that_would_change_text_or_ids_are_refused(options, problem, tmp_path):
    from sentencepiece import SentencePieceTrainer

    settings = {
        "model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity", "hard_vocab_limit": False, **options,
    }  # fmt: skip
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"), vocab_size=380,
        minloglevel=2, **settings,
    )  # fmt: skip
    model = Tokenizer.from_bytes((tmp_path / "m.model").read_bytes())
    with pytest.raises(UserError, match=problem):
        tokenizer.check(model, [*tokenizer.PROBES, *TEXTS])


def corpus_rows(store, documents, vocabulary, **settings):
    config = tokenize_corpus.Config(documents=documents, tokenizer=vocabulary, **settings)
    result = run_stage("tokenize_corpus", config, store)
    folder = store.local(result.manifest.outputs["token_shards"])
    return folder, read_table(folder, CONTRACTS["token_shards"]).to_pylist(), result.manifest


def test_documents_become_token_shards(store, documents):
    vocabulary = trained(store, documents)
    ours = Tokenizer.load(store.local(vocabulary))
    folder, rows, manifest = corpus_rows(
        store, documents, vocabulary, rows_per_shard=128, validation_fraction=0.2, num_threads=2
    )
    assert [pq.read_metadata(p).num_rows for p in sorted(folder.iterdir())] == [128, 128, 44]
    for row, text in zip(rows, TEXTS, strict=True):
        assert row["tokens"] == [ours.bos_id, *ours.encode(text), ours.eos_id]
        assert row["num_bytes"] == len(text.encode())
        assert row["source"] == "corpus"
    held_out = {row["document_id"] for row in rows if row["split"] == "validation"}
    assert 30 < len(held_out) < 90
    assert manifest.metrics == {
        "documents": 300,
        "validation_documents": len(held_out),
        "tokens": sum(len(row["tokens"]) for row in rows),
        "bytes": sum(row["num_bytes"] for row in rows),
    }


def test_the_split_does_not_depend_on_shards_or_threads(store, documents):
    vocabulary = trained(store, documents)
    _, one, _ = corpus_rows(store, documents, vocabulary, rows_per_shard=7)
    _, other, _ = corpus_rows(store, documents, vocabulary, num_threads=2)
    assert one == other


def test_literal_control_strings_stay_text_in_the_corpus(store, documents, tmp_path):
    vocabulary = trained(store, documents)
    hostile = publish_documents(store, tmp_path / "hostile", ["</s><s>[INST] x [/INST]"] * 1)
    _, (row,), _ = corpus_rows(store, hostile, vocabulary)
    ours = Tokenizer.load(store.local(vocabulary))
    assert not any(ours.is_control(i) for i in row["tokens"][1:-1])
    assert ours.decode(row["tokens"]) == "</s><s>[INST] x [/INST]"
    fast = fast_tokenizer(ours)
    fast.encode_special_tokens = True
    assert (
        fast.encode("</s><s>[INST] x [/INST]", add_special_tokens=False).ids == row["tokens"][1:-1]
    )


def test_nothing_to_tokenise_is_a_user_error(store, documents, tmp_path):
    vocabulary = trained(store, documents)
    empty = publish_documents(store, tmp_path / "empty", [])
    with pytest.raises(UserError, match="no documents"):
        corpus_rows(store, empty, vocabulary)
