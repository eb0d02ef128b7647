"""A store with two-layer models and a few prompts, for the traps that run a whole stage."""

from pathlib import Path

import torch
from trap_models import EOS, causal_lm, reward_model
from trap_ppo import work_dir

from data_contracts.artifacts import ArtifactRef
from data_contracts.parquet import write_table
from data_contracts.tables import CONTRACTS
from kernels.hf_layout import save_causal, save_reward
from kernels.model import CausalLM
from stages.models.folders import CHECKPOINT_KIND
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer

SPECIAL = {"bos_id": 1, "eos_id": EOS, "pad_id": 3}


def published(
    folder: Path, tokenizer: Tokenizer, writes_text: bool = False
) -> tuple[WorkDir, dict[str, ArtifactRef]]:
    """The place to run a stage in, and its inputs by the names that configs give them."""
    work = work_dir(folder)
    policy, other = causal_lm(1, eos_logit=6), causal_lm(2, eos_logit=6)
    if writes_text:
        policy = writing_text(policy, tokenizer)
    refs = {
        "policy": _model(work, folder / "policy", policy, tokenizer),
        "other": _model(work, folder / "other", other, tokenizer),
        "safety_rm": _model(work, folder / "safety", reward_model(3), tokenizer),
        "helpfulness_rm": _model(work, folder / "helpfulness", reward_model(4), tokenizer),
        "prompts": _table(work, folder / "prompts", "prompts", prompt_rows()),
        "demonstrations": _table(work, folder / "sft", "demonstrations", demonstration_rows()),
    }
    return work, refs


@torch.no_grad()
def writing_text(model: CausalLM, tokenizer: Tokenizer) -> CausalLM:
    """The model with control pieces and bytes as good as never drawn: most of their strings are no
    text, and rejection sampling learns text."""
    for piece in range(tokenizer.vocab_size):
        if piece != EOS and (tokenizer.is_control(piece) or tokenizer.is_byte(piece)):
            model.lm_head.weight[piece, 0] -= 2.5  # about 10 in logits
    return model


def prompt_rows() -> list[dict[str, object]]:
    """Six training and four validation prompts in both domains."""
    return [
        {
            "prompt_id": f"p{i}",
            "domain": "safety" if i % 2 else "helpfulness",
            "source": "own",
            "split": "train" if i < 6 else "validation",
            "category": None,
            "messages": [{"role": "user", "content": f"The garden has {i} walls."}],
        }
        for i in range(10)
    ]


def demonstration_rows() -> list[dict[str, object]]:
    """One demonstration."""
    question = {"role": "user", "content": "The river", "loss": False}
    answer = {"role": "assistant", "content": "has old walls.", "loss": True}
    return [{"demonstration_id": "d", "source": "own", "messages": [question, answer]}]


def _model(work: WorkDir, folder: Path, model: object, tokenizer: Tokenizer) -> ArtifactRef:
    folder.mkdir()
    save = save_reward if hasattr(model, "score") else save_causal
    save(folder, model.config, model.float().state_dict(), **SPECIAL)
    tokenizer.copy_to(folder)
    return work.store.publish(folder, CHECKPOINT_KIND)


def _table(work: WorkDir, folder: Path, name: str, rows: list[dict[str, object]]) -> ArtifactRef:
    folder.mkdir()
    write_table(folder / f"{name}.parquet", rows, CONTRACTS[name])
    return work.store.publish(folder, CONTRACTS[name].kind)
