"""Model folders: Hugging Face weights and the tokenizer side by side.

Every model artifact is a folder that transformers, vLLM and lm-eval load as it is, and a
folder that they wrote (safetensors, `config.json`, `tokenizer.model`) is accepted here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from kernels.heads import RewardModel
from kernels.hf_layout import load_causal, load_reward, save_causal, save_reward
from kernels.model import CausalLM, ModelConfig
from stages.runtime.engine import Engine, EngineSettings
from stages.runtime.modules import to_bf16
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer

CHECKPOINT_KIND = "checkpoint"


def load_policy(work: WorkDir, model: ArtifactRef) -> tuple[CausalLM, Tokenizer]:
    """The causal language model and the tokenizer of one model artifact, in fp32 on the CPU."""
    return load_policy_folder(work.input(model))


def load_policy_folder(folder: Path) -> tuple[CausalLM, Tokenizer]:
    """As `load_policy`, from any folder in Hugging Face layout.

    Embeddings beyond the tokenizer's pieces, which pad a vocabulary to a round number or make room
    for tokens to come, are left out: no text has them, and nothing could decode one that is drawn.
    Raises UserError when the weights do not fit the configuration, hold NaN or inf, or when
    the tokenizer has more pieces than the model has embeddings.
    """
    tokenizer = Tokenizer.load(folder)
    try:
        model = load_causal(folder)
    except ValueError as error:
        raise UserError(str(error), f"Check the model folder {folder}") from error
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} pieces, its model embeds only "
            f"{model.config.vocab_size}",
            "Use the tokenizer.model that the checkpoint was trained with",
        )
    model.forget_tokens_from(tokenizer.vocab_size)
    return model, tokenizer


def load_sampler(
    work: WorkDir, model: ArtifactRef, engine: EngineSettings
) -> tuple[CausalLM, Tokenizer]:
    """As `load_policy`, whole on this rank's device, in the precision that models train in."""
    policy, tokenizer = load_policy(work, model)
    if engine.precision == "bf16":
        to_bf16(policy)
    return policy.to(work.rank.device), tokenizer


def load_scorer(work: WorkDir, model: ArtifactRef) -> RewardModel:
    """The reward model of one model artifact, in fp32 on the CPU."""
    folder = work.input(model)
    try:
        return load_reward(folder)
    except ValueError as error:
        raise UserError(str(error), f"Check the reward model folder {folder}") from error


def save_policy(
    work: WorkDir, role: str, engine: Engine, config: ModelConfig, tokenizer: Tokenizer
) -> tuple[Path, str]:
    """Write the engine's weights as output `role`; every rank calls, rank 0 writes."""
    return _save(save_causal, work, role, engine, config, tokenizer)


def save_scorer(
    work: WorkDir, role: str, engine: Engine, config: ModelConfig, tokenizer: Tokenizer
) -> tuple[Path, str]:
    """Write a reward model (`LlamaForSequenceClassification` with one label) as output `role`."""
    return _save(save_reward, work, role, engine, config, tokenizer)


def _save(
    write: Callable[..., None],
    work: WorkDir,
    role: str,
    engine: Engine,
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> tuple[Path, str]:
    state = engine.full_state()
    folder = work.output(role)
    if work.rank.is_main:
        write(folder, config, state, **special_ids(tokenizer))
        tokenizer.copy_to(folder)
    return folder, CHECKPOINT_KIND


class SpecialIds(TypedDict):
    """The ids that `config.json` names, so that other programs stop and pad as we do."""

    bos_id: int
    eos_id: int
    pad_id: int


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """A tokenizer's, as keyword arguments of `kernels.hf_layout`."""
    return SpecialIds(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
