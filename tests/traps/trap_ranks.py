"""What the stages compute, by one rank and by two: the traps compare the answers."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from trap_models import causal_lm, reward_model
from trap_ppo import bench, engine, generator_and_trainer, many, prompts, work_dir
from trap_steps import STEPS

from kernels.masking import whiten, whiten_by_group
from kernels.ppo import explained_variance
from stages.runtime import settings as runtime_settings
from stages.runtime.distributed import Rank, process_group
from stages.text.tokenizer import Tokenizer

Findings = dict[str, Any]

VALUES = torch.randn(12, generator=torch.Generator().manual_seed(0)) + torch.arange(12)
GROUPS = torch.tensor([0, 1, 1, 0, 0, 2, 0, 0, 1, 0, 1, 1])
SHARES = (slice(0, 3), slice(3, 12))


def of_one_rank(folder: Path, tokenizer: Tokenizer) -> Findings:
    """Computed here."""
    return {
        **_moments(VALUES, GROUPS, None),
        **_stages(process_group(), folder, tokenizer),
    }


def of_two_ranks(folder: Path, tokenizer_folder: Path) -> list[Findings]:
    """Computed by two processes; what each of them found."""
    mp.start_processes(_one_of_two, (folder, tokenizer_folder), 2, start_method="spawn")
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(2)]


def _one_of_two(index: int, folder: Path, tokenizer_folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(index)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=index, world_size=2)
    rank = process_group()
    tokenizer = Tokenizer.load(tokenizer_folder)
    share = SHARES[index]
    findings = {
        **_moments(VALUES[share], GROUPS[share], dist.group.WORLD),
        **_stages(rank, folder, tokenizer),
        "same prompt": _samples_of_one_prompt(rank, folder, tokenizer),
        "synchronised": _after_each_sync(rank, folder, tokenizer),
    }
    torch.save(findings, folder / f"{index}.pt")
    dist.destroy_process_group()


def _moments(values: Tensor, groups: Tensor, group: Any) -> Findings:
    return {
        "whitened": whiten(values, group=group),
        "scaled": whiten(values, shift_mean=False, group=group),
        "whitened by group": whiten_by_group(values, groups, group=group),
        "explained variance": explained_variance(values / 2, values, group),
    }


def _stages(rank: Rank, folder: Path, tokenizer: Tokenizer) -> Findings:
    ready = bench(folder, tokenizer, rank=rank, dtype=torch.float32)
    rollouts, stats = ready.roll_out_with_stats()
    flat = ("logprobs", "ref_logprobs", "values", "scores", "kl", "advantages", "returns")
    findings: Findings = {
        "responses": [t.response for t in rollouts.trajectories],
        "rollouts": {name: getattr(rollouts, name) for name in flat},
        "rollout metrics": stats,
        "update metrics": ready.update(rollouts, micro_batch_size=2, mini_batch_size=12),
        "policy": ready.models.policy.gradients,
        "value": ready.models.value.gradients,
    }
    for name, step in STEPS.items():
        model = reward_model(6) if name == "reward" else causal_lm(6)
        trained = engine(model.float(), rank=rank)  # DeepSpeed reduces no float64
        findings[f"{name} metrics"] = step(trained, 2, work_dir(folder, rank))
        findings[name] = trained.gradients
    return findings


def _samples_of_one_prompt(rank: Rank, folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    ready = bench(folder, tokenizer, rank=rank)
    return [t.response for t in ready.sample(many(prompts(1), 8), seed=0)]


def _after_each_sync(
    rank: Rank, folder: Path, tokenizer: Tokenizer
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """By ZeRO stage, after each of three iterations: `generator_and_trainer`."""
    runtime_settings._PERSISTENT_ELEMENTS = 0  # or ZeRO-3 would shard nothing of the small model
    found = {}
    for zero_stage in (0, 2, 3):
        settings = {"engine": {"zero_stage": zero_stage}}
        ready = bench(folder, tokenizer, rank=rank, dtype=torch.float32, **settings)
        found[zero_stage] = [generator_and_trainer(ready, iteration) for iteration in range(3)]
    return found
