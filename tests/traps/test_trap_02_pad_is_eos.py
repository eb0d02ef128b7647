"""Trap 2: masks are made by comparing ids with the padding's, and where that is also the EOS's,
every real EOS is masked out with the padding.

When it bites: the model is never taught to end; responses run into the length limit, and the
reward is read where the text is not over.

Here masks come from lengths, so that no id has two meanings. The padding's id is set to <unk>, to
the BOS, to the EOS and to an ordinary piece in turn, and that id stands in prompts and responses.

Seen to fail with each of these planted in the product:
- loss masks without the tokens that equal the padding's id, in demonstrations, flat batches or
  trajectories;
- loss masks without the EOS;
- a document that ends before its last token, or before its first token that equals the EOS;
- trailing special ids stripped before scoring;
- generation that ends at the padding's id, or at any control piece;
- the EOS of earlier turns left out of a prompt;
- the corpus tokenised without the EOS, or its EOS not learned.
"""

import numpy as np
import plain_llama
import pyarrow as pa
import pytest
import torch
from trap_models import BOS, EOS, ONE_RANK, causal_lm, random_ids, reward_model
from trap_ppo import NO_ARTIFACT, engine, work_dir

from data_contracts.tables import CONTRACTS
from kernels.generation import Sampling, generate
from stages.models.batches import Example, collate
from stages.models.finetuning import train_step
from stages.models.rollouts import Trajectory, response_logprobs
from stages.models.scoring import score_sequences
from stages.pretrain import Config, documents_of
from stages.rejection_sampling import answer_examples
from stages.sft import rendered
from stages.text.dialogue import render_prompt
from stages.tokenize_corpus import TokenizeCorpusSettings, tokenize

CLOSE = {"rtol": 0, "atol": 2e-5}
MESSAGES = [
    {"role": "user", "content": "The garden"},
    {"role": "assistant", "content": "has walls.", "loss": False},
    {"role": "user", "content": "The river"},
    {"role": "assistant", "content": "has old walls.", "loss": True},
]


@pytest.fixture(params=[0, BOS, EOS, 77], ids=["unk", "bos", "eos", "ordinary"])
def pad_id(request):
    return request.param


@pytest.fixture
def padded_tokenizer(tokenizer, pad_id, monkeypatch):
    monkeypatch.setattr(tokenizer, "pad_id", pad_id)
    return tokenizer


def examples_of(stage, tokenizer):
    rows = [{"demonstration_id": "d", "source": "s", "messages": MESSAGES}]
    if stage == "sft":
        return rendered(rows, tokenizer, 200, "error")
    return answer_examples(rows, tokenizer, 200)


@pytest.mark.parametrize("stage", ["sft", "rejection_sampling"])
def test_the_answer_and_its_eos_are_learned(padded_tokenizer, stage):
    (example,) = examples_of(stage, padded_tokenizer)
    prompt = render_prompt(MESSAGES[:3], padded_tokenizer)
    answer = [*padded_tokenizer.encode("has old walls."), EOS]
    assert example.tokens == prompt + answer
    assert example.loss_mask == [False] * len(prompt) + [True] * len(answer)
    assert prompt.count(EOS) == 1  # of the earlier answer: context, like the rest of it
    flat = collate([example, example], torch.device("cpu"))
    assert flat.targets.tolist() == answer * 2


def test_ids_that_equal_the_padding_are_learned(tmp_path, pad_id):
    """The loss of the real training step, against the plain model's."""
    answers = [[pad_id, EOS], [9, pad_id, pad_id, 9, EOS], [EOS], [8, EOS, pad_id]]
    documents = [([*random_ids(3, i), pad_id], answer) for i, answer in enumerate(answers)]
    batch = [[Example(p + a, [False] * len(p) + [True] * len(a))] for p, a in documents]
    model = causal_lm(0)
    expected = [plain_llama.logprobs(model, p, a).detach() for p, a in documents]
    loss = train_step(engine(model), batch, 3, work_dir(tmp_path))
    assert loss == pytest.approx(-torch.cat(expected).mean().item(), abs=1e-5)


def test_training_on_an_answer_teaches_its_eos(tmp_path, padded_tokenizer):
    (example,) = examples_of("sft", padded_tokenizer)
    model = causal_lm(0)
    before = logprob_of_the_last(model, example.tokens)
    trained = engine(model, learning_rate=1e-3)
    for _ in range(5):
        train_step(trained, [[example]], 1, work_dir(tmp_path))
    assert logprob_of_the_last(model, example.tokens) > before + 1


def logprob_of_the_last(model, tokens):
    return plain_llama.logprobs(model, tokens[:-1], tokens[-1:]).item()


def test_ids_that_equal_the_padding_are_measured_and_scored(pad_id):
    policy, reward = causal_lm(1), reward_model(2)
    responses = [[pad_id], [pad_id, EOS], [5, pad_id, pad_id], [pad_id, 5, EOS], [EOS]]
    trajectories = [
        Trajectory([BOS, pad_id, *random_ids(2, i)], response, response[-1] == EOS)
        for i, response in enumerate(responses)
    ]
    found = response_logprobs(policy, trajectories, 1.0, ONE_RANK)
    expected = [plain_llama.logprobs(policy, t.prompt, t.response) for t in trajectories]
    torch.testing.assert_close(found.double(), torch.cat(expected).detach(), **CLOSE)
    scores = score_sequences(reward, [t.tokens for t in trajectories], ONE_RANK)
    at_the_end = torch.stack([plain_llama.scores(reward, t.tokens)[-1] for t in trajectories])
    torch.testing.assert_close(scores.double(), at_the_end, **CLOSE)


@pytest.mark.parametrize("likely", [0, BOS, 3, 77])
def test_no_id_but_the_eos_ends_a_response(likely):
    model = causal_lm(1, eos_logit=-30)
    with torch.no_grad():
        model.lm_head.weight[likely, 0] += 3.0
    prompts = [random_ids(4, i) for i in range(20)]
    out = generate(model, prompts, Sampling(12), eos_id=EOS, seed=0)
    assert sum(response.count(likely) for response in out.responses) > 40
    assert not any(out.finished)
    assert {len(response) for response in out.responses} == {12}


def test_documents_of_the_corpus_end_with_an_eos_that_is_learned(padded_tokenizer):
    texts = ["The garden has walls.", "old"]
    rows = {"document_id": ["a", "b"], "source": ["s", "s"], "text": texts}
    batch = pa.RecordBatch.from_pydict(rows, schema=CONTRACTS["documents"].schema)
    shard = tokenize(batch, padded_tokenizer, TokenizeCorpusSettings())
    documents = shard.column("tokens").to_pylist()
    for text, document in zip(texts, documents, strict=True):
        assert document == [BOS, *padded_tokenizer.encode(text), EOS]
    block = np.array(documents[0] + documents[1])
    for mask_documents in (False, True):
        config = pretraining(sequence_length=len(block) - 1, mask_documents=mask_documents)
        flat = collate(documents_of(block, config, BOS), torch.device("cpu"))
        assert flat.targets.tolist().count(EOS) == 2


def pretraining(**settings):
    return Config.model_validate(
        {"token_shards": NO_ARTIFACT, "tokenizer": NO_ARTIFACT, **settings}
    )
