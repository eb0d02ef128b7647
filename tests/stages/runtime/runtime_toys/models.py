"""A toy language model whose output is a tuple, its data, and plain torch training of it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.runtime.distributed import Rank
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings
from stages.runtime.schedules import cosine_with_warmup

VOCABULARY = 50
ROWS = 12
NUM_STEPS = 20
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, gradient_clipping=0.5)
SCHEDULE = cosine_with_warmup(NUM_STEPS, 3, OPTIMIZER.learning_rate, 0.1)


class Losses(NamedTuple):
    losses: Tensor
    entropy: Tensor


class Toy(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, 16)
            self.hidden = nn.Linear(16, 400)
            self.norm = nn.LayerNorm(400)
            self.wide = nn.Linear(400, 300)  # above ZeRO-3's threshold for keeping weights whole
            self.out = nn.Linear(300, VOCABULARY, bias=False)
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Losses:
        hidden = self.norm(torch.tanh(self.hidden(self.embedding(tokens))))
        logits = (self.out(torch.relu(self.wide(hidden))) * self.get_buffer("scale")).float()
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        return Losses(F.cross_entropy(logits, targets, reduction="none"), entropy)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return tokens, (tokens * 7 + 3) % VOCABULARY


def plain_adamw(module: nn.Module) -> torch.optim.AdamW:
    """The paper's AdamW (§2.2), written out: matrices decay, vectors do not."""
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-5,
    )


def train_plainly(num_steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """The twin of `train`: torch alone, the global batch at once."""
    module = Toy()
    adamw = plain_adamw(module)
    losses = []
    for step in range(num_steps):
        for group in adamw.param_groups:
            group["lr"] = SCHEDULE(step)
        loss = module(*batch(step)).losses.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    return losses, {name: value.clone() for name, value in module.state_dict().items()}


def build(
    rank: Rank, zero_stage: int = 0, precision: str = "fp32", seed: int = 0, **settings: int
) -> Engine:
    all_settings = {"zero_stage": zero_stage, "precision": precision, **settings}
    return Engine(Toy(seed), OPTIMIZER, SCHEDULE, EngineSettings.model_validate(all_settings), rank)


def train(engine: Engine, rank: Rank, steps: range, splits: list[int]) -> list[float]:
    """Rows go round the ranks; each rank cuts its own into micro-batches of `splits` rows."""
    return [train_step(engine, rank, step, splits) for step in steps]


def train_step(engine: Engine, rank: Rank, step: int, splits: list[int]) -> float:
    tokens, targets = (part[rank.index :: rank.world_size] for part in batch(step))
    assert sum(splits) == len(tokens)
    total = 0.0
    pieces = list(zip(tokens.split(splits), targets.split(splits), strict=True))
    for i, piece in enumerate(pieces):
        loss = engine(*piece).losses.sum() / ROWS
        engine.backward(loss, last=i == len(pieces) - 1)
        total += loss.item()
    engine.step()
    return rank.sum(total)
