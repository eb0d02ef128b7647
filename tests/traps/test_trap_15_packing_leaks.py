"""Trap 15: documents that share a sequence see each other.

When it bites: an answer is learned as the continuation of another dialogue, a response is scored
with its neighbour's text, and the loss of a document depends on what it was packed with.

Seen to fail with each of these planted in the product:
- causal attention over the whole flat batch;
- documents that see one token of the one before, or the last token of a shorter one beside them;
- padding rows that are seen, or a gradient that comes back from them;
- tokens taken back from the rows of another document, or in the order of lengths;
- positions that go on from one document to the next;
- key-value heads shared by the wrong queries;
- documents packed into a sequence one after the other as if they were one;
- the first token of a document predicted from the last one of the document before;
- blocks of the corpus cut one token after a document begins, or not at all;
- the two sides of a comparison in one document;
- prompts that see the ones they are read with.
"""

import itertools
import math

import numpy as np
import plain_llama
import pytest
import torch
from trap_models import EOS, HEADS, causal_lm, flat, random_ids, reward_model
from trap_ppo import NO_ARTIFACT, engine, work_dir

from kernels import attention
from kernels.attention import Documents, packed_attention
from kernels.generation import Sampling, generate
from stages.models.batches import Example, collate
from stages.models.finetuning import FinetuningSettings, PackedEpochs, train_step
from stages.models.pairs import Pair, flat_pairs
from stages.pretrain import Config, documents_of

CPU = torch.device("cpu")
CLOSE = {"rtol": 0, "atol": 1e-5}
LENGTHS = [
    [5, 3, 9],  # one bucket, padded
    [16, 16],  # rows as they are
    [1, 17, 2, 33],  # several buckets, out of order
    [20, 4, 20, 4],
]


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def num_kv_heads(request):
    return request.param


@pytest.fixture(params=LENGTHS, ids=lambda lengths: "-".join(map(str, lengths)))
def documents(request):
    return [random_ids(length, i) for i, length in enumerate(request.param)]


def layout(documents):
    return Documents.of([len(document) for document in documents])


def test_packed_logits_are_those_of_each_document_alone(num_kv_heads, documents):
    model = causal_lm(0, num_kv_heads)
    packed = model.logits(flat(documents), layout(documents))
    alone = [plain_llama.logits(model, document) for document in documents]
    torch.testing.assert_close(packed.double(), torch.cat(alone), **CLOSE)


def test_editing_a_document_leaves_the_others_as_they_were(num_kv_heads, documents):
    model, place = causal_lm(0, num_kv_heads), layout(documents)
    before = model.logits(flat(documents), place).split(place.lengths)
    for edited in range(len(documents)):
        others = [*documents]
        others[edited] = random_ids(len(documents[edited]), 99)
        after = model.logits(flat(others), place).split(place.lengths)
        for i in range(len(documents)):
            assert torch.equal(before[i], after[i]) == (i != edited)


def test_no_gradient_crosses_to_another_document(num_kv_heads, documents):
    """Every document has ids of its own, so that the embedding shows whose loss reached it."""
    model, place = causal_lm(0, num_kv_heads), layout(documents)
    starts = [20 + sum(place.lengths[:i]) for i in range(len(documents))]
    own = [range(a, a + n) for a, n in zip(starts, place.lengths, strict=True)]
    tokens = flat([list(ids) for ids in own])
    hidden = model.backbone(tokens, place).split(place.lengths)
    for i, ids in enumerate(own):
        (gradient,) = torch.autograd.grad(
            hidden[i].square().sum() + hidden[i].sum(),
            model.backbone.embedding.weight,
            retain_graph=True,
        )
        touched = gradient.abs().sum(1).nonzero().squeeze(1).tolist()
        assert touched == list(ids)


def test_gradients_of_a_pack_are_the_sum_of_each_alone(num_kv_heads, documents):
    def gradients(groups):
        model = causal_lm(0, num_kv_heads)
        for group in groups:
            examples = [Example(d, [True] * len(d)) for d in group if len(d) > 1]
            batch = collate(examples, CPU)
            model(batch.tokens, batch.documents, batch.rows, batch.targets).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    packed = gradients([documents])
    alone = gradients([[d] for d in documents if len(d) > 1])
    for name, gradient in alone.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-5, atol=1e-5)


def test_what_fine_tuning_packs_has_the_loss_of_each_document_alone(tmp_path):
    sizes = [(3, 4), (5, 9), (2, 2), (9, 6), (1, 12), (4, 3)]
    examples = [
        Example(random_ids(p + r, i), [False] * p + [True] * r) for i, (p, r) in enumerate(sizes)
    ]
    settings = FinetuningSettings(sequence_length=20, global_batch_size=8)
    batch = PackedEpochs(examples, settings, seed=0).batch(0)
    assert max(len(sequence) for sequence in batch) > 1
    assert all(sum(len(e.tokens) for e in sequence) <= 20 for sequence in batch)
    packed = [example for sequence in batch for example in sequence]
    assert sorted(map(id, packed)) == sorted(map(id, examples))
    model = causal_lm(0)
    alone = [
        plain_llama.logprobs(model, example.tokens[:prompt], example.tokens[prompt:]).detach()
        for example, (prompt, _) in zip(examples, sizes, strict=True)
    ]
    for micro_batch_size in (1, 8):
        loss = train_step(engine(causal_lm(0)), batch, micro_batch_size, work_dir(tmp_path))
        assert loss == pytest.approx(-torch.cat(alone).mean().item(), abs=2e-5)


@pytest.mark.parametrize("mask_documents", [False, True])
def test_a_block_of_the_corpus_is_cut_where_documents_begin(mask_documents):
    """Llama 2 lets a block's documents see each other; `mask_documents` keeps them apart."""
    first, second, third = ([1, *random_ids(n, n)] for n in (3, 6, 2))
    block = np.array([*random_ids(4, 9), *first, *second, *third])
    config = Config.model_validate(
        {"token_shards": NO_ARTIFACT, "tokenizer": NO_ARTIFACT, "mask_documents": mask_documents}
    )
    found = [example.tokens for example in documents_of(block, config, bos_id=1)]
    apart = [random_ids(4, 9), first, second, third]
    assert found == (apart if mask_documents else [block.tolist()])


def test_the_sides_of_a_comparison_do_not_see_each_other(num_kv_heads):
    model = reward_model(0, num_kv_heads)
    prompt = random_ids(4, 0)
    pairs = [
        Pair(prompt + random_ids(a, 1), prompt + random_ids(b, 2), None, None)
        for a, b in ((1, 9), (5, 5), (20, 2))
    ]
    scores = model(*flat_pairs(pairs, CPU))
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    alone = torch.stack([plain_llama.scores(model, side)[-1] for side in sides])
    torch.testing.assert_close(scores.double(), alone, **CLOSE)


def test_a_prompt_is_answered_as_if_it_were_alone(num_kv_heads):
    model = causal_lm(0, num_kv_heads, eos_logit=6)
    prompts = [random_ids(n, n) for n in (3, 19, 7, 7, 33)]
    together = generate(model, prompts, Sampling(6), eos_id=EOS, seed=0)
    for edited in range(len(prompts)):
        others = [*prompts]
        others[edited] = random_ids(len(prompts[edited]), 99)
        responses = generate(model, others, Sampling(6), eos_id=EOS, seed=0).responses
        for i in range(len(prompts)):
            assert i == edited or responses[i] == together.responses[i]


def written_out(q, k, v, lengths):
    """Attention with every product and mask in sight, document by document, in float64."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    outputs = []
    for qs, ks, vs in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("ihd,jhd->hij", qs, ks) / math.sqrt(q.shape[2])
        ahead = torch.ones(len(qs), len(qs), dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(ahead, -math.inf).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, vs))
    return torch.cat(outputs)


CUDA_CASES = list(itertools.product([[5, 3, 9], [128, 1, 77, 300]], [8, 2, 1], [True, False]))


@pytest.mark.gpu
@pytest.mark.parametrize(("lengths", "num_kv", "has_gqa"), CUDA_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_of_a_gpu_keep_documents_apart(lengths, num_kv, has_gqa, dtype, monkeypatch):
    """In half precision the variable-length kernel, with and without its own sharing of heads."""
    kernel, takes_groups = attention._varlen_kernel()
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: (kernel, has_gqa and takes_groups))
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), n, 64, generator=generator, device="cuda", dtype=dtype)
        for n in (8, num_kv, num_kv)
    )
    place = Documents.of(lengths, "cuda")
    found = packed_attention(q, k, v, place)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 4e-3
    torch.testing.assert_close(
        found.double(), written_out(q, k, v, lengths), rtol=0, atol=tolerance
    )
    edited = torch.cat([k[: lengths[0]] * 3 + 1, k[lengths[0] :]])
    after = packed_attention(q, edited, v, place)
    assert torch.equal(after[lengths[0] :], found[lengths[0] :])
    assert not torch.equal(after[: lengths[0]], found[: lengths[0]])
