"""Early stopping of PPO on held-out prompts (§3.2.3), and the version that they liked best."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data_contracts.artifacts import file_names
from data_contracts.durable import sync_file, sync_folder
from kernels.hf_layout import save_causal
from kernels.model import ModelConfig
from stages.models.folders import CHECKPOINT_KIND, special_ids
from stages.runtime.engine import Engine
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer


@dataclass
class EarlyStopping:
    """What is remembered from one held-out evaluation to the next; saved in every checkpoint."""

    best_iteration: int = -1
    best_objective: float = -math.inf
    num_without_best: int = 0
    """Evaluations since the best one."""
    is_spent: bool = False
    """Whether the KL has gone beyond its budget."""
    baseline: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of the held-out reward by domain, before training."""

    def standardised(
        self, reward: Tensor, domains: Sequence[str], finished: Tensor, unfinished_score: float
    ) -> Tensor:
        """Rewards (N,) in standard deviations of their domain above the model PPO started from.

        A response that was cut off takes no part in that and gets the fixed score, as in training
        (trap 7). The first call that has others of a domain sets its baseline.
        """
        standardised = torch.full_like(reward, unfinished_score)
        for domain in sorted(set(domains)):
            is_own = finished & torch.tensor([d == domain for d in domains])
            if is_own.any():
                own = reward[is_own]
                mean, spread = self.baseline.setdefault(domain, _level(own))
                standardised[is_own] = (own - mean) / spread
        return standardised

    def is_over(self, patience: int) -> bool:
        """Whether training ends: so many evaluations without a new best, or no KL left."""
        return self.is_spent or self.num_without_best >= patience

    def spend(self, kl: float, budget: float | None) -> None:
        """Take in an iteration's mean KL per response, in nats."""
        self.is_spent = self.is_spent or not within_budget(kl, budget)

    def observe(self, objective: float, iteration: int, is_allowed: bool = True) -> bool:
        """Take in an evaluation; whether it is the best so far of those that are allowed."""
        if is_allowed and objective > self.best_objective:
            self.best_objective, self.best_iteration = objective, iteration
            self.num_without_best = 0
            return True
        self.num_without_best += 1
        return False


def _level(rewards: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; 1 where a single response, or equal ones, have none."""
    return float(rewards.mean()), float(rewards.std(correction=0)) or 1.0


def within_budget(kl: float, budget: float | None) -> bool:
    """Whether a KL per response is no more than the budget, if there is one."""
    return budget is None or kl <= budget


def keep_best(
    work: WorkDir, policy: Engine, config: ModelConfig, tokenizer: Tokenizer, iteration: int
) -> None:
    """Write the policy's weights aside until the end of the run. All ranks call."""
    state = policy.full_state()
    if not work.rank.is_main:
        return
    unfinished = _folder(work) / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_causal(unfinished, config, state, **special_ids(tokenizer))
    tokenizer.copy_to(unfinished)
    for name in file_names(unfinished):
        sync_file(unfinished / name)
    target = _folder(work) / f"{iteration:08d}"
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    sync_folder(_folder(work))


def publish_best(work: WorkDir, stopping: EarlyStopping) -> tuple[Path, str]:
    """The best version as the stage's model."""
    folder = work.output("model")
    if work.rank.is_main:
        best = _folder(work) / f"{stopping.best_iteration:08d}"
        shutil.copytree(best, folder, dirs_exist_ok=True)
    return folder, CHECKPOINT_KIND


def forget_bests_after(work: WorkDir, iteration: int) -> None:
    """Remove what a run that was interrupted later than it saved will find again, or not."""
    if work.rank.is_main:
        for kept in _kept(work):
            if kept > iteration:
                shutil.rmtree(_folder(work) / f"{kept:08d}")


def forget_older_bests(work: WorkDir, checkpoints: Sequence[int]) -> None:
    """Remove what neither this run nor a resume from one of these iterations can publish."""
    if work.rank.is_main and checkpoints:
        kept = _kept(work)
        oldest_needed = max((best for best in kept if best <= min(checkpoints)), default=0)
        for best in kept:
            if best < oldest_needed:
                shutil.rmtree(_folder(work) / f"{best:08d}")


def _kept(work: WorkDir) -> list[int]:
    return [int(path.name) for path in _folder(work).glob("[0-9]*")]


def _folder(work: WorkDir) -> Path:
    return work.checkpoints / "best"
