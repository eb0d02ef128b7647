"""Our weights as Hugging Face models, and its Trainers under the clock.

Imported inside the sides that run a peer: accelerate must already be on the path.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.utils import logging

from benchmarks.shapes import BOS_ID, EOS_ID, PAD_ID, Precision
from benchmarks.turns import Turns
from kernels.heads import RewardModel
from kernels.hf_layout import save_causal, save_reward
from kernels.model import CausalLM

logging.set_verbosity_error()
datasets.disable_progress_bars()

_IDS = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}


def causal_twin(model: CausalLM) -> LlamaForCausalLM:
    """A model as transformers loads it, with its default attention (SDPA)."""
    with tempfile.TemporaryDirectory() as folder:
        save_causal(Path(folder), model.config, model.state_dict(), **_IDS)
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reward_twin(model: RewardModel) -> LlamaForSequenceClassification:
    """A reward model as transformers loads it."""
    with tempfile.TemporaryDirectory() as folder:
        save_reward(Path(folder), model.config, model.state_dict(), **_IDS)
        return LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


class GatedTwins(torch.nn.Module):
    """Two reward models behind the gate of §3.2.3, in the form that PPOTrainer asks of one."""

    base_model_prefix = "both"

    def __init__(
        self, helpfulness: LlamaForSequenceClassification, safety: LlamaForSequenceClassification
    ) -> None:
        super().__init__()
        self.both = _Both(helpfulness.model, safety.model)
        self.heads = torch.nn.ModuleList([helpfulness.score, safety.score])

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """The safety score where it is below 0.15 on the sigmoid's scale, else helpfulness."""
        halves = hidden.chunk(2, dim=-1)
        helpful, safe = (head(half) for head, half in zip(self.heads, halves, strict=True))
        return torch.where(safe.sigmoid() < 0.15, safe, helpful)


class _Both(torch.nn.Module):
    """Two transformers that read the same tokens; their last hidden states side by side."""

    def __init__(self, *backbones: torch.nn.Module) -> None:
        super().__init__()
        self.backbones = torch.nn.ModuleList(backbones)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """What PPOTrainer reads of a model's output."""
        last = [backbone(**inputs).hidden_states[-1] for backbone in self.backbones]
        return SimpleNamespace(hidden_states=(torch.cat(last, dim=-1),))


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """What TRL's trainers insist on; the data have been tokenised before."""
    from tokenizers import Tokenizer, models

    special = {"<pad>": PAD_ID, "<s>": BOS_ID, "</s>": EOS_ID}
    words = {f"w{i}": i for i in range(len(special), vocab_size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(special | words, unk_token="<pad>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


class Laps(TrainerCallback):
    """Ends a lap at every optimizer step; `num_tokens` says how many tokens that step had."""

    def __init__(self, turns: Turns, num_tokens: Callable[[], int]) -> None:
        self._turns = turns
        self._num_tokens = num_tokens

    def on_train_begin(self, *positional: Any, **named: Any) -> None:
        """Start the clock."""
        self._turns.start()

    def on_step_end(self, *positional: Any, **named: Any) -> None:
        """One optimizer step is done."""
        self._turns.lap(self._num_tokens())


class FedTokens:
    """Counts the tokens that a model was fed since it was last asked, padding apart."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._count: int | torch.Tensor = 0
        model.register_forward_pre_hook(self._add, with_kwargs=True)

    def __call__(self) -> int:
        """The count, which starts anew."""
        count, self._count = int(self._count), 0
        return count

    def _add(self, module: Any, positional: Any, named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        # added up on the GPU: to read each would make the Trainer wait
        self._count = self._count + (named["input_ids"].numel() if mask is None else mask.sum())


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the peers work; a race on the CPU sees no GPU."""


def common_arguments(turns: Turns, folder: str, precision: Precision) -> dict[str, Any]:
    """What every Trainer is told: the stages' optimizer, schedule and precision, nothing saved."""
    return {
        "output_dir": folder,
        "max_steps": turns.num_laps,
        "use_cpu": DEVICE.type == "cpu",
        "bf16": precision == "bf16",
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-5,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": DEVICE.type != "cpu",
    }
