"""Reward and value models: Llama with a scalar in place of the next-token head (§3.2.2).

Legend: T tokens, N documents, E model dimension.
"""

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kernels.attention import Documents
from kernels.model import CausalLM, Linear, Llama, ModelConfig


class ScoreHead(Linear):
    """Linear map to one number without bias, drawn from N(0, 1/(dim + 1)); computed in fp32."""

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__(config.dim, 1, 1 / math.sqrt(config.dim + 1), generator)

    def forward(self, x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows"]:
        """One number a row. bf16's three digits would tie responses that differ."""
        return F.linear(x.float(), self.weight.float()).squeeze(-1)


def num_scorer_parameters(config: ModelConfig) -> int:
    """Parameters of a reward or value model on this transformer: a row for the output layer."""
    output_layer = 0 if config.tie_embeddings else config.vocab_size * config.dim
    return config.num_parameters() - output_layer + config.dim


class RewardModel(nn.Module):
    """Scores a whole document (prompt and response) by the state of its last token."""

    def __init__(self, backbone: Llama, score: ScoreHead) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.score = score

    @classmethod
    def from_causal(cls, model: CausalLM, generator: torch.Generator) -> "RewardModel":
        """A reward model on a copy of this language model's transformer, with a new head."""
        return cls(copy.deepcopy(model.backbone), ScoreHead(model.config, generator))

    def forward(self, tokens: Int[Tensor, " T"], documents: Documents) -> Float[Tensor, " N"]:
        """Raw score (a logit, fp32) of each document."""
        return self.score(self.backbone(tokens, documents).index_select(0, documents.last))


class ValueModel(nn.Module):
    """Estimates the return from every token on: PPO's critic. Laid out as RewardModel is."""

    def __init__(self, backbone: Llama, score: ScoreHead) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.score = score

    @classmethod
    def from_reward(cls, reward_model: RewardModel) -> "ValueModel":
        """A value model that starts as a copy of this reward model, head included."""
        return cls(copy.deepcopy(reward_model.backbone), copy.deepcopy(reward_model.score))

    def forward(self, tokens: Int[Tensor, " T"], documents: Documents) -> Float[Tensor, " T"]:
        """Value (fp32) at every token."""
        return self.score(self.backbone(tokens, documents))
