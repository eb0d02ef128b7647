import math

import pytest
import torch

from kernels import causal_blocks, products
from kernels.attention import Documents
from kernels.model import CausalLM, ModelConfig

LENGTHS = [5, 1, 17, 9]
SMALL = {
    "vocab_size": 61,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "ffn_hidden": 48,
}


def small_model(seed=0, **changes):
    return CausalLM(ModelConfig(**SMALL | changes), torch.Generator().manual_seed(seed))


def batch():
    tokens = torch.randint(0, 61, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return tokens, Documents.of(LENGTHS)


def test_llama_2_7b_has_its_parameters_and_operations():
    config = ModelConfig(32_000, 4096, 32, 32, 32, 11_008)
    assert config.num_parameters() == 6_738_415_616
    # 3,014 tokens/s on a 312 TFLOP/s GPU are 45.3 % at the full-attention convention
    assert config.flops_per_token(4096) * 3014 / 312e12 == pytest.approx(0.453, abs=5e-4)


@pytest.mark.parametrize("tie", [False, True])
def test_num_parameters_counts_what_is_there(tie):
    model = small_model(tie_embeddings=tie)
    assert model.config.num_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("changes", [{"n_heads": 3}, {"n_heads": 32}, {"n_kv_heads": 3}])
def test_heads_that_do_not_divide_are_refused(changes):
    with pytest.raises(ValueError, match="Choose"):
        ModelConfig(**SMALL | changes)


def test_packed_documents_read_as_they_do_alone():
    model = small_model()
    tokens, documents = batch()
    alone = [model.logits(part, Documents.of([len(part)])) for part in tokens.split(LENGTHS)]
    torch.testing.assert_close(model.logits(tokens, documents), torch.cat(alone), rtol=0, atol=1e-6)


def test_a_later_token_changes_no_earlier_logits():
    model = small_model()
    tokens, documents = batch()
    before = model.logits(tokens, documents)
    tokens[20] = (tokens[20] + 1) % 61  # in the third document, tokens 6 to 22
    after = model.logits(tokens, documents)
    is_same = (before == after).all(dim=1)
    assert is_same[:20].all()
    assert not is_same[20:23].any()
    assert is_same[23:].all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_logprobs_are_those_of_the_logits(temperature):
    model = small_model()
    tokens, documents = batch()
    rows, targets = torch.tensor([0, 3, 7, 30]), torch.tensor([4, 60, 0, 4])
    expected = (model.logits(tokens, documents)[rows] / temperature).log_softmax(-1)
    out = model(tokens, documents, rows, targets, temperature, mode="logprobs")
    torch.testing.assert_close(out.logprobs, expected[range(4), targets])
    torch.testing.assert_close(out.entropy, -(expected.exp() * expected).sum(-1))
    if temperature == 1:
        loss = model(tokens, documents, rows, targets)
        torch.testing.assert_close(loss, -out.logprobs.sum())


@pytest.mark.parametrize("rows", [[0, 3, 30], [], list(range(sum(LENGTHS)))])
def test_a_few_rows_are_those_of_all(rows):
    model = small_model()
    tokens, documents = batch()
    rows = torch.tensor(rows, dtype=torch.int64)
    results = []
    for hidden in (
        model.backbone(tokens, documents)[rows],
        model.backbone(tokens, documents, rows),
    ):
        model.zero_grad()
        hidden.sum().backward()
        results.append([hidden, *(p.grad for p in model.backbone.parameters())])
    for of_all, of_few in zip(*results, strict=True):
        torch.testing.assert_close(of_few, of_all)


def gradients(model):
    tokens, documents = batch()
    model.zero_grad()
    model(tokens, documents, torch.arange(20), tokens[1:21]).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture
def _as_large(monkeypatch):
    """No product and no attention is too small for oneDNN and for blocks of queries."""
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "FEWEST_OF_A_STEP", 0)
    monkeypatch.setattr(causal_blocks, "_FEWEST", 0)


def check_that_recomputing_changes_nothing():
    model = small_model()
    plain = gradients(model)
    model.backbone.activation_checkpointing = True
    recomputed = gradients(model)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_activation_checkpointing_leaves_gradients_as_they_are():
    check_that_recomputing_changes_nothing()


@pytest.mark.usefixtures("_as_large")
def test_activation_checkpointing_leaves_the_gradients_of_large_batches():
    check_that_recomputing_changes_nothing()


def test_large_batches_have_the_gradients_of_small_ones(request):
    model = small_model()
    small = gradients(model)
    request.getfixturevalue("_as_large")
    large = gradients(model)
    assert any(not torch.equal(small[name], large[name]) for name in small)
    for name, gradient in large.items():
        torch.testing.assert_close(gradient, small[name], rtol=1e-4, atol=1e-6)


def test_initial_weights_have_their_spread_and_their_seed():
    model = small_model(dim=256, n_layers=8, vocab_size=500, ffn_hidden=300)
    for name, weight in model.named_parameters():
        is_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        if weight.dim() == 1:
            assert (weight == 1).all()
        else:
            std = 0.02 / math.sqrt(16) if is_residual else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.03)
    again, other = (small_model(seed).state_dict() for seed in (0, 1))
    for name, weight in small_model().state_dict().items():
        assert torch.equal(weight, again[name])
        assert weight.dim() == 1 or not torch.equal(weight, other[name])


def test_tied_embeddings_are_one_parameter():
    model = small_model(tie_embeddings=True)
    assert model.lm_head.weight is model.backbone.embedding.weight


def test_state_dict_holds_parameters_only():
    model = small_model()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_bf16_stays_close_to_fp32_far_from_the_start():
    """Rotary angles rounded to bf16 would be off by whole turns at position 3000."""
    model = small_model()
    tokens = torch.randint(0, 61, (3000,), generator=torch.Generator().manual_seed(2))
    documents = Documents.of([3000])
    with torch.no_grad():
        expected = model.logits(tokens, documents)
        rounded = model.bfloat16().logits(tokens, documents)
    assert rounded.dtype == torch.float32
    assert (rounded - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_document_longer_than_the_context_is_refused():
    model = small_model(max_seq_len=8)
    with pytest.raises(ValueError, match="17 tokens, the model reads at most 8"):
        model.logits(*batch())
