"""What two real processes make of new heads (trap 18) and of uneven shares (trap 20) under ZeRO."""

import functools
import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_contracts.ratings import Domain, Rating, SafetyLabel
from kernels.heads import RewardModel, ScoreHead, ValueModel
from kernels.model import CausalLM, ModelConfig
from stages import reward_model
from stages.models import finetuning, ppo_update, rollouts, scoring
from stages.models.batches import Example
from stages.models.pairs import Pair
from stages.models.ppo_update import UpdateSettings
from stages.models.rollouts import Rollouts, Trajectory
from stages.runtime import settings, zero
from stages.runtime.distributed import Rank, process_group
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings, frozen
from stages.runtime.schedules import constant

Findings = dict[str, Any]

CONFIG = ModelConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=48)
OPTIMIZER = OptimizerSettings(learning_rate=1e-3)
STAGES = (2, 3)
"""Where every backward pass, or every forward pass as well, waits for the other ranks."""
PATIENCE = timedelta(seconds=15)
"""With a planted bug: how long a rank waits for the other before it fails."""


def on_two_ranks(
    program: Callable[[Rank], Findings], plant: Callable[[], None] | None = None
) -> Findings:
    """Rank 0's findings. Raises what torch.multiprocessing does when a rank fails."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (program, plant, Path(folder))
        mp.start_processes(_one_of_two, arguments, 2, start_method="spawn")
        return json.loads((Path(folder) / "findings.json").read_text())


def _one_of_two(
    index: int,
    program: Callable[[Rank], Findings],
    plant: Callable[[], None] | None,
    folder: Path,
) -> None:
    torch.set_num_threads(1)
    settings._PERSISTENT_ELEMENTS = 0  # or ZeRO-3 would shard nothing of so small a model
    join(index, folder / "start")
    if plant:
        plant()
        dist.destroy_process_group()
        join(index, folder / "again", PATIENCE)  # both are here, with everything imported
    rank = process_group()
    findings = program(rank)
    if rank.is_main:
        (folder / "findings.json").write_text(json.dumps(findings))
    dist.destroy_process_group()


def join(index: int, place: Path, timeout: timedelta = timedelta(minutes=5)) -> None:
    dist.init_process_group("gloo", f"file://{place}", rank=index, world_size=2, timeout=timeout)


@functools.cache
def both_programs() -> Findings:
    """Of a healthy run, for both traps."""
    return on_two_ranks(_both)


def _both(rank: Rank) -> Findings:
    return {"heads": heads(rank), "uneven": uneven(rank)}


# ------------------------------------------------------------------ trap 18


def new_head_models() -> dict[str, RewardModel | ValueModel]:
    """As the stages make them: a reward model with a new head, and a critic that copies it."""
    policy = CausalLM(CONFIG, torch.Generator().manual_seed(1))
    reward = RewardModel.from_causal(policy, torch.Generator().manual_seed(2))
    return {"reward": reward, "value": ValueModel.from_reward(reward)}


def heads(rank: Rank) -> Findings:
    """Each head's weights after sharding, by precision, stage and model."""
    found = {}
    for precision in ("fp32", "bf16"):
        for zero_stage in (1, 2, 3):
            for name, model in new_head_models().items():
                engine = engine_of(model, rank, zero_stage, precision)
                weights = engine.full_state().get("score.weight")
                if weights is not None:  # on rank 0
                    found[f"{precision} {zero_stage} {name}"] = weights.flatten().tolist()
    return found


def head_is_drawn_after_sharding() -> None:
    """Into a parameter that ZeRO-3 has left empty."""
    initialize = zero.initialize

    def late(module: torch.nn.Module, config: Any, optimizer: Any) -> Any:
        if hasattr(module, "score"):
            torch.nn.init.zeros_(module.score.weight)
        engine = initialize(module, config, optimizer)
        if hasattr(module, "score"):
            torch.nn.init.normal_(module.score.weight, std=(CONFIG.dim + 1) ** -0.5)
        return engine

    zero.initialize = late


def head_is_left_at_zero() -> None:
    draw = ScoreHead.__init__

    def undrawn(self: ScoreHead, config: ModelConfig, generator: Any) -> None:
        draw(self, config, generator)
        torch.nn.init.zeros_(self.weight)

    ScoreHead.__init__ = undrawn


# ------------------------------------------------------------------ trap 20


def uneven(rank: Rank) -> Findings:
    """Losses and scores of real stage code where the ranks' shares differ, or one is empty."""
    return {str(zero_stage): uneven_at(rank, zero_stage) for zero_stage in STAGES}


def uneven_at(rank: Rank, zero_stage: int) -> Findings:
    work: Any = SimpleNamespace(rank=rank)
    policy = engine_of(CausalLM(CONFIG, torch.Generator().manual_seed(1)), rank, zero_stage)
    ranker = engine_of(new_head_models()["reward"], rank, zero_stage)
    critic = engine_of(new_head_models()["value"], rank, zero_stage)
    judge = frozen(new_head_models()["reward"], EngineSettings(zero_stage=zero_stage), rank)
    rows = [document(i) for i in range(5)]
    examples = [[Example(tokens, [True] * len(tokens))] for tokens in rows]
    pairs = [Pair(a, a[::-1], Rating.better, SafetyLabel.both_safe) for a in rows]
    trajectories = [Trajectory(tokens[:2], tokens[2:], True) for tokens in rows]
    return {
        "sft": [finetuning.train_step(policy, examples[:n], 1, work) for n in (5, 1, 3)],
        "reward": [
            reward_model.train_step(ranker, pairs[:n], REWARD, work)["train/loss"] for n in (5, 1)
        ],
        "scores": scoring.score_sequences(judge, rows[:3], rank, max_tokens=4).tolist(),
        "logprobs": rollouts.response_logprobs(policy, trajectories[:3], 1.0, rank).tolist(),
        "ppo": [ppo_losses(policy, critic, trajectories[:n], rank) for n in (5, 1)],
    }


def ppo_losses(
    policy: Engine, critic: Engine, trajectories: list[Trajectory], rank: Rank
) -> list[float]:
    lengths = [len(t.response) for t in trajectories]
    drawn = torch.randn(5, sum(lengths), generator=torch.Generator().manual_seed(0))
    scores = torch.zeros(len(lengths))
    batch = Rollouts(trajectories, lengths, *drawn[:3], scores, scores, *drawn[3:])
    update = UpdateSettings(mini_batch_size=5, micro_batch_size=1)
    order = range(len(lengths))
    stats = ppo_update.update(update, policy, critic, batch, order, rank)
    return [stats["ppo/policy_loss"], stats["ppo/value_loss"]]


REWARD: Any = SimpleNamespace(
    micro_batch_size=1, margin="small", domain=Domain.safety, safety_auxiliary_weight=1.0
)


def document(i: int) -> list[int]:
    """The first ones are the longest, so that equal numbers of rows are not equal tokens."""
    generator = torch.Generator().manual_seed(i)
    return torch.randint(3, CONFIG.vocab_size, (12 - 2 * i,), generator=generator).tolist()


def ranks_cut_only_what_they_have() -> None:
    """No empty micro-batch where a rank has run out of rows."""

    def own(items: Any, rank: Rank, size: int) -> list[Any]:
        mine = list(items[rank.index :: rank.world_size])
        return [mine[i : i + size] for i in range(0, len(mine), size)] or [[]]

    for module in (finetuning, reward_model, ppo_update):
        module.share_of_rank = own


def each_rank_drops_its_own_rows() -> None:
    """Those that it finds too long, after the rows have been dealt out."""
    shares = finetuning.share_of_rank

    def filtered(items: Any, rank: Rank, size: int) -> list[Any]:
        if rank.index == 1:
            items = [row for row in items if len(row[0].tokens) < 10]
        return shares(items, rank, size)

    finetuning.share_of_rank = filtered


def ranks_measure_only_what_they_have() -> None:
    """Each as many forward passes as its own rows need."""

    def own(self: Rank, value: Any) -> list[Any]:
        return [value] if isinstance(value, int) else gather(self, value)

    gather = Rank.gather_objects
    Rank.gather_objects = own


def engine_of(
    model: torch.nn.Module, rank: Rank, zero_stage: int, precision: str = "fp32"
) -> Engine:
    given = {"zero_stage": zero_stage, "precision": precision}
    engine = EngineSettings.model_validate(given)
    return Engine(model, OPTIMIZER, constant(1e-3), engine, rank)
