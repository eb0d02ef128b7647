import math

import pytest
import torch

from kernels.attention import Documents
from kernels.heads import RewardModel, ValueModel
from kernels.model import CausalLM, ModelConfig

LENGTHS = [4, 1, 9]
TOKENS = torch.randint(0, 40, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def causal():
    return CausalLM(ModelConfig(40, 32, 2, 4, 2, 48), torch.Generator().manual_seed(0))


@pytest.fixture
def reward(causal):
    return RewardModel.from_causal(causal, torch.Generator().manual_seed(1))


def test_a_score_is_the_head_times_the_last_tokens_state(causal, reward):
    documents = Documents.of(LENGTHS)
    hidden = causal.backbone(TOKENS, documents)
    expected = hidden[[3, 4, 13]] @ reward.score.weight[0]
    torch.testing.assert_close(reward(TOKENS, documents), expected)


def test_values_are_scores_of_every_beginning(reward):
    values = ValueModel.from_reward(reward)(TOKENS, Documents.of(LENGTHS))
    third = TOKENS[5:]
    for i in range(9):
        score = reward(third[: i + 1], Documents.of([i + 1]))
        torch.testing.assert_close(values[5 + i], score[0], rtol=0, atol=1e-6)


def test_the_score_does_not_depend_on_the_batch(reward):
    together = reward(TOKENS, Documents.of(LENGTHS))
    alone = [reward(part, Documents.of([len(part)])) for part in TOKENS.split(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


def test_heads_are_on_copies(causal, reward):
    value = ValueModel.from_reward(reward)
    shared = [{id(p) for p in model.parameters()} for model in (causal, reward, value)]
    assert not shared[0] & shared[1]
    assert not shared[1] & shared[2]
    assert reward.state_dict().keys() == value.state_dict().keys()
    for name, weight in reward.state_dict().items():
        assert torch.equal(weight, value.state_dict()[name])


def test_the_heads_initial_spread():
    config = ModelConfig(40, 4096, 1, 4, 4, 8)
    model = CausalLM(config, torch.Generator().manual_seed(0))
    head = RewardModel.from_causal(model, torch.Generator().manual_seed(0)).score.weight
    assert head.shape == (1, 4096)
    assert head.std().item() == pytest.approx(1 / math.sqrt(4097), rel=0.05)


def test_scores_of_a_bf16_model_are_fp32(reward):
    scores = reward.bfloat16()(TOKENS, Documents.of(LENGTHS))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
