"""The engine on a GPU: `pytest -m gpu tests/stages`. Its twin is plain torch on the CPU in fp32."""

from pathlib import Path

import pytest
import torch
from runtime_toys.models import plain_adamw

from kernels.attention import Documents
from kernels.generation import Sampling, generate
from kernels.model import CausalLM, ModelConfig
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.determinism import seed_everything
from stages.runtime.distributed import Rank, process_group
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings
from stages.runtime.schedules import cosine_with_warmup

pytestmark = pytest.mark.gpu

NUM_STEPS = 12
CONFIG = ModelConfig(256, 128, 2, 4, 2, 256, max_seq_len=128)
OPTIMIZER = OptimizerSettings(learning_rate=3e-3, gradient_clipping=1.0)
SCHEDULE = cosine_with_warmup(NUM_STEPS, 2, OPTIMIZER.learning_rate, 0.1)
LENGTHS = (1, 40, 17, 64)
SETTINGS = {
    "ZeRO-0, fp32": {},
    "ZeRO-2, fp32": {"zero_stage": 2},
    "ZeRO-0, bf16": {"precision": "bf16"},
    "ZeRO-2, bf16": {"zero_stage": 2, "precision": "bf16"},
    "ZeRO-2, bf16, AdamW on the host": {
        "zero_stage": 2,
        "precision": "bf16",
        "offload_optimizer": True,
    },
    "checkpointing, bf16": {"precision": "bf16", "activation_checkpointing": True},
}


def model() -> CausalLM:
    return CausalLM(CONFIG, torch.Generator().manual_seed(0))


def engine(rank: Rank, values: dict[str, object]) -> Engine:
    settings = EngineSettings.model_validate(values)
    return Engine(model(), OPTIMIZER, SCHEDULE, settings, rank)


def tokens(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step % 3)  # three batches, to be learnt by heart
    return torch.randint(3, CONFIG.vocab_size, (sum(LENGTHS),), generator=generator)


def loss_of(module: torch.nn.Module | Engine, step: int, device: torch.device) -> torch.Tensor:
    ids, documents = tokens(step).to(device), Documents.of(LENGTHS, device)
    rows = torch.arange(len(ids) - 1, device=device)
    return module(ids, documents, rows, ids[1:]) / len(rows)


def train(trained: Engine, rank: Rank, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(trained, step, rank.device)
        trained.backward(loss, last=True)
        trained.step()
        losses.append(loss.item())
    return losses


def plain_losses() -> list[float]:
    """Torch alone, on the CPU."""
    module, losses = model(), []
    adamw = plain_adamw(module)
    for step in range(NUM_STEPS):
        for group in adamw.param_groups:
            group["lr"] = SCHEDULE(step)
        loss = loss_of(module, step, torch.device("cpu"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", SETTINGS)
def test_training_follows_plain_torch_on_the_cpu(name: str) -> None:
    rank = process_group()
    assert rank.device.type == "cuda"
    losses = train(engine(rank, SETTINGS[name]), rank, range(NUM_STEPS))
    expected = plain_losses()
    assert expected[-1] < 0.9 * expected[0]
    assert losses == pytest.approx(expected, rel=2e-2 if "bf16" in name else 1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    """The random numbers to the bit, the losses up to kernels that add in a random order."""
    rank = process_group()
    seed_everything(5)
    straight = engine(rank, SETTINGS[name])
    train(straight, rank, range(6))
    with Checkpointer(tmp_path, rank) as checkpointer:
        checkpointer.save(6, {"policy": straight})
    expected = train(straight, rank, range(6, NUM_STEPS)), torch.rand(3, device="cuda").tolist()

    seed_everything(6)
    resumed = engine(rank, SETTINGS[name])
    assert Checkpointer(tmp_path, rank).restore({"policy": resumed})[0] == 6
    found = train(resumed, rank, range(6, NUM_STEPS)), torch.rand(3, device="cuda").tolist()
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] == expected[1]


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_trained_is_what_writes(name: str) -> None:
    """Greedy responses after training are those of the weights that the engine hands out."""
    rank = process_group()
    trained = engine(rank, SETTINGS[name])
    train(trained, rank, range(NUM_STEPS))
    prompts = [tokens(0).tolist()[1:41], tokens(1).tolist()[:7]]
    greedy = Sampling(20, temperature=0)
    with torch.no_grad(), trained.gathered() as plain:
        written = generate(plain, prompts, greedy, eos_id=2, seed=0).responses
    copy = model()
    copy.load_state_dict(trained.full_state())
    copy.to(rank.device, next(plain.parameters()).dtype)
    assert generate(copy, prompts, greedy, eos_id=2, seed=0).responses == written
