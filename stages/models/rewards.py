"""Both reward models at once, joined by the gate (§3.2.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_contracts.artifacts import ArtifactRef
from kernels.attention import Documents
from kernels.masking import whiten_by_group
from kernels.ppo import gated_reward, safety_gate
from stages.models import normalisation
from stages.models.folders import load_scorer
from stages.models.normalisation import normalised
from stages.models.scoring import score_sequences
from stages.runtime.engine import EngineSettings, frozen
from stages.runtime.stage import WorkDir

Judge = Callable[[Tensor, Documents], Tensor]
"""Scores of a flat batch of documents, one each."""

GATE_THRESHOLD = 0.15
"""The paper's: below this probability of being safe, the safety score decides (§3.2.3)."""


@dataclass(frozen=True)
class Scores:
    """Raw scores (logits) of N responses, fp32 on the CPU."""

    helpfulness: Tensor
    safety: Tensor
    reward: Tensor
    """R_c: the safety score where the prompt is a safety prompt or the gate fires."""
    gated: Tensor
    """(N,) bool: prompts of the helpfulness domain whose response the gate caught."""


@dataclass(frozen=True)
class RewardModels:
    """The two reward models of one iteration, in evaluation mode."""

    helpfulness: Judge
    safety: Judge
    gate_threshold: float

    @classmethod
    def load(
        cls,
        work: WorkDir,
        helpfulness: ArtifactRef,
        safety: ArtifactRef,
        gate_threshold: float,
        engine: EngineSettings,
    ) -> "RewardModels":
        """Both models from the store; see `load_judge`."""
        return cls(
            load_judge(work, helpfulness, engine), load_judge(work, safety, engine), gate_threshold
        )

    def score(
        self, sequences: Sequence[list[int]], is_safety_prompt: Sequence[bool], work: WorkDir
    ) -> Scores:
        """Scores of whole sequences (prompt and response), in order, on every rank."""
        helpfulness = score_sequences(self.helpfulness, sequences, work.rank)
        safety = score_sequences(self.safety, sequences, work.rank)
        is_safety = torch.tensor(list(is_safety_prompt))
        reward = gated_reward(helpfulness, safety, is_safety, self.gate_threshold)
        gated = safety_gate(safety, is_safety, self.gate_threshold) & ~is_safety
        return Scores(helpfulness, safety, reward, gated)


def load_judge(work: WorkDir, model: ArtifactRef, engine: EngineSettings) -> Judge:
    """A reward model from the store on the level of its normalisation, which the gate's threshold
    is meant for; sharded over the ranks under ZeRO-3. All ranks call."""
    scorer = frozen(load_scorer(work, model), engine, work.rank)
    return normalised(scorer, normalisation.read(work.input(model)))


def whitened(reward: Tensor, group: Tensor, finished: Tensor, unfinished_score: float) -> Tensor:
    """R̃_c (N,): whiten(logit(R_c)) within each group (N,) bool; scores are logits already.

    A response that was cut off takes no part in whitening and gets the fixed score (trap 7).
    """
    scores = torch.full_like(reward, unfinished_score)
    if finished.any():
        scores[finished] = whiten_by_group(reward[finished], group[finished].long())
    return scores


def raw_scores(reward: Tensor, group: Tensor, finished: Tensor, unfinished_score: float) -> Tensor:
    """R_c as it is, in place of `whitened`: on the reward models' own scale."""
    return torch.where(finished, reward, unfinished_score)
