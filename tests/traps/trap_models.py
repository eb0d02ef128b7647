"""The two-layer models that the traps are tried on, and the process they run in."""

import torch
from torch import Tensor, nn

from kernels.heads import RewardModel, ValueModel
from kernels.model import CausalLM, ModelConfig
from stages.runtime.distributed import Rank

VOCAB = 300
BOS, EOS = 1, 2
HEADS = {"mha": 4, "gqa": 2, "mqa": 1}
"""Key-value heads beside four query heads."""

ONE_RANK = Rank(0, 1, 0, torch.device("cpu"))


def causal_lm(
    seed: int = 0, n_kv_heads: int = 2, dtype: torch.dtype = torch.float64, eos_logit: float = 0.0
) -> CausalLM:
    """A language model whose distributions are neither flat nor certain.

    `eos_logit` lifts the EOS everywhere by about so much: at 6 a response has some seven tokens.
    """
    config = ModelConfig(VOCAB, 32, 2, 4, n_kv_heads, 48, max_seq_len=128)
    model = CausalLM(config, torch.Generator().manual_seed(seed))
    _sharpen(model)
    with torch.no_grad():
        # A constant in the first dimension of every token is the bias that a Llama has not.
        model.backbone.embedding.weight[:, 0] = 2.0
        model.lm_head.weight[EOS, 0] += eos_logit / 4
    return model.to(dtype)


def reward_model(seed: int, n_kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> RewardModel:
    """A reward model whose scores are a few units apart."""
    causal = causal_lm(seed, n_kv_heads)
    model = RewardModel.from_causal(causal, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.score.weight.mul_(5)
    return model.to(dtype)


def value_model(seed: int, n_kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> ValueModel:
    """A value model, on other weights than the reward model of the same seed."""
    return ValueModel.from_reward(reward_model(seed + 1000, n_kv_heads, dtype))


def random_ids(length: int, seed: int) -> list[int]:
    """Ordinary token ids, none of them a control piece."""
    return torch.randint(
        10, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def flat(documents: list[list[int]]) -> Tensor:
    """Documents end to end."""
    return torch.tensor([token for document in documents for token in document])


def _sharpen(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
