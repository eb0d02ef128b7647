"""Trap 22: responses are sampled with weights that training has left behind, or by an engine that
computes something else.

When it bites: the policy is rewarded for what an earlier one wrote; ratios drift from 1 with every
iteration, and the clip hides it until learning stops.

Seen to fail with each of these planted in the product:
- the sampler made once, before training, and never again;
- gathered weights copied to a second module that nobody samples from;
- the copy brought up to date before the update, or only every other time;
- the first layer, the norms or the output layer left out of the copy;
- masters updated and the weights that are computed with not;
- a restored or newly set policy with the sampler of before;
- a key-value cache, rotation table or fused weight kept from an earlier call;
- the generator's norm, scale or softmax in another precision or order.
"""

import pytest
import torch
from trap_models import EOS, causal_lm
from trap_ppo import bench, generator_and_trainer
from trap_store import published

from kernels import generation
from kernels.generation import Sampling, generate
from stages import ppo
from stages.models import sampling
from stages.models.rollouts import Trajectory, response_logprobs
from stages.runtime.distributed import process_group

SETTINGS = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 2, "precision": "bf16"},
]


def check(pairs, tolerance):
    """Generator and trainer agree after every sync, and there was something to bring over."""
    for generated, trained in pairs:
        torch.testing.assert_close(generated, trained, rtol=0, atol=tolerance)
    assert len(pairs) == 3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_after_each_sync_generator_and_trainer_agree(tmp_path, tokenizer, settings):
    """The learning rate is such that weights of one iteration before are far off."""
    ready = bench(tmp_path, tokenizer, dtype=torch.float32, engine=settings)
    before = causal_lm(1, dtype=torch.float32, eos_logit=6)
    pairs = []
    for iteration in range(3):
        pairs.append(generator_and_trainer(ready, iteration))
        rollouts = ready.roll_out(iteration)
        stale = response_logprobs(before, rollouts.trajectories, 1.0, ready.work.rank)
        assert (stale - rollouts.logprobs).abs().mean() > 0.05
        before.load_state_dict(ready.models.policy.full_state())
    check(pairs, 0.15 if "precision" in settings else 2e-4)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_ranks_gather_all_weights_at_each_sync(two_ranks, zero_stage):
    for rank in two_ranks:
        check(rank["synchronised"][zero_stage], 2e-4)
    generated = [torch.cat([g for g, _ in rank["synchronised"][zero_stage]]) for rank in two_ranks]
    assert torch.equal(*generated)  # both sample from one policy


def test_new_weights_reach_the_sampler(tmp_path, tokenizer):
    """As a resume sets them, before the first response of the run."""
    ready = bench(tmp_path, tokenizer, dtype=torch.float32)
    ready.models.policy.load_full_state(causal_lm(9, dtype=torch.float32).state_dict())
    with ready.models.policy.gathered() as sampler:
        found = {name: value.tolist() for name, value in sampler.state_dict().items()}
    expected = causal_lm(9, dtype=torch.float32).state_dict()
    assert found == {name: value.tolist() for name, value in expected.items()}


def test_the_stage_samples_with_what_it_has_trained(tmp_path, tokenizer, monkeypatch):
    """The whole stage: log-probs of the generator against those that it stores for its rollouts."""
    generated, trained = [], []

    def listening(*arguments, **options):
        out = generation.generate(*arguments, **options)
        generated.append(torch.tensor([x for row in out.logprobs for x in row]))
        return out

    def remembering(model, trajectories, *rest):
        found = response_logprobs(model, trajectories, *rest)
        trained.append(found)
        return found

    monkeypatch.setattr(sampling, "generate", listening)
    monkeypatch.setattr(ppo, "response_logprobs", remembering)
    work, refs = published(tmp_path, tokenizer)
    own = {name: refs[name] for name in ppo.Config.model_fields if name in refs}
    config = ppo.Config.model_validate(
        {
            **own,
            "num_iterations": 3,
            "evaluate_every": 1,
            "batch_size": 6,
            "mini_batch_size": 3,
            "max_new_tokens": 8,
            "learning_rate": 1e-2,
            "value_learning_rate": 1e-2,
        }
    )
    ppo.run(config, work)
    assert len(generated) == 7  # before training, then rollouts and held-out prompts in turn
    # the policy's log-probs, then the reference's, of each batch of responses
    for by_generator, by_trainer in zip(generated, trained[::2], strict=True):
        torch.testing.assert_close(by_generator, by_trainer, rtol=0, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_generator_and_trainer_agree(tmp_path, tokenizer, precision):
    ready = bench(tmp_path, tokenizer, dtype=torch.float32, engine={"precision": precision})
    for iteration in range(3):
        generated, trained = generator_and_trainer(ready, iteration)
        assert (generated - trained).abs().mean() < (0.02 if precision == "bf16" else 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_weights_changed_in_place_are_sampled_from(dtype):
    """As recorded CUDA graphs see them: the same model, other numbers in the same memory."""
    rank = process_group()
    model, prompts = causal_lm(1, dtype=dtype).to(rank.device), [[1, 20, 30], [1, 40]] * 4
    for seed in (1, 2, 3):
        model.load_state_dict(causal_lm(seed, dtype=dtype).state_dict())
        out = generate(model, prompts, Sampling(8), eos_id=EOS, seed=0)
        trajectories = [
            Trajectory(*row) for row in zip(prompts, out.responses, out.finished, strict=True)
        ]
        trained = response_logprobs(model, trajectories, 1.0, rank)
        generated = torch.tensor([x for row in out.logprobs for x in row])
        assert (generated - trained).abs().mean() < (0.02 if dtype == torch.bfloat16 else 1e-3)
