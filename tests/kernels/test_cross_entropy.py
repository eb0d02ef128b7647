"""The chunked output-layer functions against plain autograd in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import cross_entropy
from kernels.cross_entropy import (
    linear_cross_entropy_sum,
    linear_logprobs,
    measured_logprobs,
)


@pytest.fixture(params=[1, 5, 10**9], ids=["row by row", "5 rows", "one chunk"])
def _chunk(request, monkeypatch):
    _take_rows_at_a_time(monkeypatch, request.param)


def _take_rows_at_a_time(monkeypatch, num_rows):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", 1)
    monkeypatch.setattr(cross_entropy, "_CHUNK_ROWS_CPU", num_rows)


@pytest.mark.parametrize(("vocab", "rows"), [(4096, 1024), (16_384, 256), (32_000, 256)])
def test_a_chunk_stays_in_the_cache_but_never_has_few_rows(vocab, rows):
    """Every chunk reads and writes the weight gradient once."""
    chunks = cross_entropy._chunks(torch.empty(2048, 1), torch.empty(vocab, 1))
    assert [c.stop - c.start for c in chunks] == [rows] * (2048 // rows)


def _inputs(rows=23, dim=16, vocab=37, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, dim, generator=generator) * scale
    weight = torch.randn(vocab, dim, generator=generator)
    targets = torch.randint(vocab, (rows,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def _in_float64(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def _plain_logprobs(hidden, weight, targets, temperature=1.0):
    logprobs = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy


def _error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()


# ---------------------------------------------------------------- sum of cross-entropies


def test_sum_by_hand():
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weight = torch.tensor([[0.0, 0.0], [math.log(3), math.log(7)]])
    # softmax of (0, ln 3) is (1/4, 3/4); of (0, ln 7) it is (1/8, 7/8)
    loss = linear_cross_entropy_sum(hidden, weight, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(8), rel=1e-6)


def test_gradients_by_hand():
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    linear_cross_entropy_sum(hidden, weight, torch.tensor([1])).backward()
    # probabilities (1/4, 3/4) less the target (0, 1)
    torch.testing.assert_close(weight.grad, torch.tensor([[0.25], [-0.25]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.25 * math.log(3)]]))


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("rows", [1, 23, 64])
def test_sum_equals_float64(rows):
    hidden, weight, targets = _inputs(rows)
    exact_hidden, exact_weight = _in_float64(hidden, weight)
    exact = F.cross_entropy(exact_hidden @ exact_weight.T, targets, reduction="sum")
    (exact / 7).backward()
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    (loss / 7).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert _error(hidden.grad, exact_hidden.grad) < 1e-5
    assert _error(weight.grad, exact_weight.grad) < 1e-5


@pytest.mark.usefixtures("_chunk")
def test_sum_in_float64_has_the_gradient_of_finite_differences():
    # Not by gradcheck, which goes backward twice through one result.
    hidden, weight, targets = _inputs(rows=4, dim=3, vocab=5, dtype=torch.float64)
    linear_cross_entropy_sum(hidden, weight, targets).backward()
    for tensor in (hidden, weight):
        for index in range(tensor.numel()):
            step = torch.zeros(tensor.numel(), dtype=torch.float64)
            step[index] = 1e-5
            step = step.view_as(tensor)
            up, down = (
                linear_cross_entropy_sum(
                    *((t + sign * step if t is tensor else t).detach() for t in (hidden, weight)),
                    targets,
                )
                for sign in (1, -1)
            )
            slope = (up - down) / 2e-5
            assert tensor.grad.flatten()[index].item() == pytest.approx(slope.item(), abs=1e-8)


def test_bf16_is_no_worse_than_the_reference_that_upcasts_logits(monkeypatch):
    _take_rows_at_a_time(monkeypatch, 16)
    hidden, weight, targets = _inputs(256, 64, 500, torch.bfloat16)
    exact_hidden, exact_weight = _in_float64(hidden, weight)
    exact = F.cross_entropy(exact_hidden @ exact_weight.T, targets, reduction="sum")
    exact.backward()
    reference = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    reference.backward()
    reference_grads = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - exact) <= abs(reference - exact) + 1e-6 * exact
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # 1.001: the same roundings in another order
    assert _error(hidden.grad, exact_hidden.grad) <= 1.001 * _error(
        reference_grads[0], exact_hidden.grad
    )
    assert _error(weight.grad, exact_weight.grad) <= 1.001 * _error(
        reference_grads[1], exact_weight.grad
    )


def test_huge_logits_stay_finite():
    hidden, weight, targets = _inputs(scale=1e4)
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    loss.backward()
    scored = linear_logprobs(hidden, weight, targets)
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()
    assert scored.logprobs.isfinite().all()
    assert scored.entropy.isfinite().all()
    torch.testing.assert_close(-scored.logprobs.sum(), loss)


def test_no_rows_give_zero_with_zero_gradients():
    hidden, weight, targets = _inputs(rows=0)
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, 16)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("function", [linear_cross_entropy_sum, linear_logprobs])
def test_a_frozen_side_gets_no_gradient_and_the_other_the_same(function, frozen):
    def total(hidden, weight):
        result = function(hidden, weight, targets)
        return result if isinstance(result, torch.Tensor) else sum(result).sum()

    hidden, weight, targets = _inputs()
    total(hidden, weight).backward()
    left, right = hidden.detach(), weight.detach()
    (right if frozen == "hidden" else left).requires_grad_()
    total(left, right).backward()
    if frozen == "hidden":
        assert left.grad is None
        torch.testing.assert_close(right.grad, weight.grad)
    else:
        assert right.grad is None
        torch.testing.assert_close(left.grad, hidden.grad)


def test_without_grad_mode_the_value_is_the_same():
    hidden, weight, targets = _inputs()
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    with torch.no_grad():
        evaluated = linear_cross_entropy_sum(hidden, weight, targets)
    assert not evaluated.requires_grad
    assert torch.equal(evaluated, loss)


def test_a_second_backward_pass_is_refused():
    loss = linear_cross_entropy_sum(*_inputs())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Call it again"):
        loss.backward()


# ---------------------------------------------------------------- log-probabilities and entropy


def test_logprobs_by_hand():
    hidden = torch.tensor([[1.0], [0.0]])
    weight = torch.tensor([[0.0], [math.log(9)]])
    at_one = linear_logprobs(hidden, weight, torch.tensor([1, 0]))
    # (1/10, 9/10) and (1/2, 1/2)
    assert at_one.logprobs.tolist() == pytest.approx([math.log(0.9), math.log(0.5)])
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert at_one.entropy.tolist() == pytest.approx([entropy, math.log(2)])
    at_two = linear_logprobs(hidden, weight, torch.tensor([1, 0]), temperature=2.0)
    # ln 9 / 2 = ln 3: (1/4, 3/4)
    assert at_two.logprobs.tolist() == pytest.approx([math.log(0.75), math.log(0.5)])


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_logprobs_equal_float64(temperature):
    hidden, weight, targets = _inputs()
    exact_hidden, exact_weight = _in_float64(hidden, weight)
    exact = _plain_logprobs(exact_hidden, exact_weight, targets, temperature)
    scored = linear_logprobs(hidden, weight, targets, temperature)
    factors = torch.linspace(-2, 3, len(targets))
    for logprobs, entropy in (exact, scored):
        (logprobs * factors + entropy * factors.flip(0)).sum().backward()
    assert scored.logprobs.dtype == scored.entropy.dtype == torch.float32
    assert _error(scored.logprobs, exact[0]) < 1e-5
    assert _error(scored.entropy, exact[1]) < 1e-5
    assert _error(hidden.grad, exact_hidden.grad) < 1e-5
    assert _error(weight.grad, exact_weight.grad) < 1e-5


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measured_logprobs_are_the_same_to_the_bit(temperature, dtype):
    inputs = _inputs(dtype=dtype)
    measured = measured_logprobs(*inputs, temperature)
    assert torch.equal(measured, linear_logprobs(*inputs, temperature).logprobs)
    assert not measured.requires_grad


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("pick", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_logprobs_gradcheck(pick):
    hidden, weight, targets = _inputs(rows=4, dim=3, vocab=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: tuple(linear_logprobs(h, w, targets, 0.8))[pick],
        (hidden, weight),
        nondet_tol=1e-12,  # logits made twice are normalised in one step instead of two
    )


def test_bf16_logprobs_are_fp32_and_no_worse_than_the_upcast_reference():
    hidden, weight, targets = _inputs(128, 64, 500, torch.bfloat16)
    exact = _plain_logprobs(*_in_float64(hidden, weight), targets)
    logits = (hidden @ weight.T).float()
    reference = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    scored = linear_logprobs(hidden, weight, targets)
    assert scored.logprobs.dtype == torch.float32
    assert _error(scored.logprobs, exact[0]) <= 1.001 * _error(reference, exact[0])


def test_no_rows_give_empty_logprobs_with_zero_gradients():
    hidden, weight, targets = _inputs(rows=0)
    scored = linear_logprobs(hidden, weight, targets)
    assert scored.logprobs.shape == scored.entropy.shape == (0,)
    (scored.logprobs.sum() + scored.entropy.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_logprobs_read_the_weight_anew_in_the_backward_pass():
    """ZeRO-3 empties a parameter after the forward pass and fills another storage later."""
    hidden, weight, targets = _inputs()
    linear_logprobs(hidden, weight, targets).logprobs.sum().backward()
    expected = weight.grad
    gathered_again = weight.detach().clone()
    weight.grad = None
    scored = linear_logprobs(hidden, weight, targets)
    assert scored.logprobs.grad_fn.weight is weight
    weight.data.fill_(float("nan"))  # the old storage, for whoever still holds it
    weight.data = torch.empty(0)
    weight.data = gathered_again
    scored.logprobs.sum().backward()
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_without_logprobs_is_refused(temperature):
    for function in (linear_logprobs, measured_logprobs):
        with pytest.raises(ValueError, match="Pass the sampling temperature"):
            function(*_inputs(), temperature=temperature)


def test_one_chunk_makes_its_logits_once():
    hidden, weight, targets = _inputs()
    with _Operations() as operations:
        linear_logprobs(hidden, weight, targets).logprobs.sum().backward()
    assert operations.names.count("mm") == 2  # logits, and the gradient of hidden
    assert operations.names.count("addmm_") == 1  # the gradient of the weight


def test_a_second_backward_pass_gives_the_same():
    hidden, weight, targets = _inputs()
    scored = linear_logprobs(hidden, weight, targets)
    scored.logprobs.sum().backward(retain_graph=True)
    first, weight.grad = weight.grad, None
    scored.logprobs.sum().backward()
    torch.testing.assert_close(weight.grad, first)


# ---------------------------------------------------------------- at the size of Llama's vocabulary


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_logprob_is_within_1e_5_of_float64(temperature):
    hidden, weight, targets = _inputs(rows=64, dim=512, vocab=32_000, scale=0.2)
    exact, _ = _plain_logprobs(*_in_float64(hidden, weight), targets, temperature)
    scored = linear_logprobs(hidden, weight, targets, temperature)
    assert ((scored.logprobs - exact) / exact).abs().max() < 1e-5


class _Operations(TorchDispatchMode):
    """What was called, and how many bytes of storage were alive at most, inputs not counted."""

    def __init__(self, *inputs):
        super().__init__()
        self.names = []
        self.most_bytes = 0
        self._inputs = {tensor.untyped_storage()._cdata for tensor in inputs}
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.removeprefix("aten::"))
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.most_bytes = max(self.most_bytes, sum(size for _, size in self._alive.values()))
        return result

    def _add(self, storage):
        if storage._cdata not in self._inputs:
            self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())


def _most_bytes(function, dtype):
    """Beyond the inputs, gradients included. Meta tensors have sizes and no values."""
    rows, dim, vocab = 4096, 512, 32_000
    hidden = torch.empty(rows, dim, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.empty(vocab, dim, dtype=dtype, device="meta", requires_grad=True)
    targets = torch.empty(rows, dtype=torch.int64, device="meta")
    with _Operations(hidden, weight, targets) as operations:
        function(hidden, weight, targets).sum().backward()
    return operations.most_bytes


def _plain(hidden, weight, targets):
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def _logprobs_and_entropy(hidden, weight, targets):
    scored = linear_logprobs(hidden, weight, targets)
    return scored.logprobs + scored.entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [linear_cross_entropy_sum, _logprobs_and_entropy])
def test_memory_is_a_fifth_of_plain_cross_entropy_at_most(function, dtype):
    plain = _most_bytes(_plain, dtype)
    assert plain > 1.4e9  # the logits and two things like them
    assert _most_bytes(function, dtype) <= 0.2 * plain
