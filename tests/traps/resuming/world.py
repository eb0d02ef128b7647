"""A store with just enough in it to run every stage that trains, for seconds, and their configs.

Every run takes 6 steps (PPO: iterations), saves after every second, has three micro-batches to a
step in one process, and passes from one epoch to the next in its third step or its fourth.
"""

from pathlib import Path
from typing import Any

import torch

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.parquet import write_table
from data_contracts.store import Store
from data_contracts.tables import CONTRACTS
from kernels.heads import RewardModel
from kernels.hf_layout import save_causal, save_reward
from kernels.model import CausalLM, ModelConfig
from stages.models.folders import CHECKPOINT_KIND, special_ids
from stages.runtime.stage import stage_module
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

NUM_STEPS = 6
TEXTS = [
    f"The {noun} has {i} {noun}s, and it is {mood}.\n"
    for i in range(20)
    for noun in ("garden", "lantern", "river")
    for mood in ("old", "very quiet")
]
MODEL = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden": 64}
_SAVING = {"checkpoint_every": 2, "keep_checkpoints": 2}


class World:
    """Inputs of all stages in a store."""

    def __init__(self, home: Path) -> None:
        self._store = Store.open(home)
        self._drafts = home.parent / f"{home.name}-drafts"
        self.tokenizer = Tokenizer.from_bytes(train_bpe(TEXTS, 300))
        self._shape = ModelConfig(self.tokenizer.vocab_size, **MODEL, max_seq_len=128)

    def configs(self) -> dict[str, StageConfig]:
        """By stage."""
        policy, prompts = self._policy(), self._prompts()
        helpfulness_rm, safety_rm = self._reward_model(1), self._reward_model(2)
        values: dict[str, dict[str, Any]] = {
            "pretrain": {
                "tokenizer": self._tokenizer(),
                "token_shards": self._token_shards(),
                "model": {**MODEL, "max_seq_len": 128},
                "sequence_length": 16,
                "num_tokens": NUM_STEPS * 6 * 16,
                "global_batch_size": 6,
                "micro_batch_size": 2,
                "learning_rate": 3e-3,
                "warmup_steps": 2,
            },
            "sft": {
                "init_from": policy,
                "demonstrations": self._demonstrations(),
                "sequence_length": 64,
                "global_batch_size": 6,
                "micro_batch_size": 2,
                "num_epochs": 2,
                "learning_rate": 3e-3,
            },
            "reward_model": {
                "domain": "safety",
                "init_from": policy,
                "preferences": [self._preferences("own", 18, 6)],
                "open_preferences": self._preferences("open", 0, 4),
                "helpfulness_share": 0,
                "global_batch_size": 6,
                "micro_batch_size": 2,
                "num_epochs": 2,
                "learning_rate": 3e-3,
                "min_warmup_steps": 2,
            },
            "ppo": {
                "policy": policy,
                "helpfulness_rm": helpfulness_rm,
                "safety_rm": safety_rm,
                "prompts": prompts,
                "num_iterations": NUM_STEPS,
                "batch_size": 6,
                "mini_batch_size": 3,
                "micro_batch_size": 1,
                "max_new_tokens": 12,
                "learning_rate": 1e-3,
                "value_learning_rate": 1e-3,
                "num_value_warmup_iterations": 1,
                "evaluate_every": 1,
                "patience": 100,
                "kl_target": 0.02,
                "kl_horizon": 30,
            },
        }
        return {
            stage: stage_module(stage).Config.model_validate({**given, **_SAVING, "seed": 3})
            for stage, given in values.items()
        }

    def _publish(self, name: str, kind: str) -> ArtifactRef:
        return self._store.publish(self._drafts / name, kind)

    def _draft(self, name: str) -> Path:
        folder = self._drafts / name
        folder.mkdir(parents=True)
        return folder

    def _table(self, name: str, contract: str, rows: list[dict[str, Any]]) -> ArtifactRef:
        folder = self._draft(name)
        write_table(folder / "rows.parquet", rows, CONTRACTS[contract])
        return self._publish(name, CONTRACTS[contract].kind)

    def _tokenizer(self) -> ArtifactRef:
        self.tokenizer.copy_to(self._draft("tokenizer"))
        return self._publish("tokenizer", "tokenizer")

    def _causal(self, seed: int) -> CausalLM:
        model = CausalLM(self._shape, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            # Distributions that are not flat, and that end about every tenth token.
            model.lm_head.weight.mul_(8)
            model.lm_head.weight[self.tokenizer.eos_id] *= 4
        return model

    def _policy(self) -> ArtifactRef:
        folder, model = self._draft("policy"), self._causal(0)
        save_causal(folder, self._shape, model.state_dict(), **special_ids(self.tokenizer))
        self.tokenizer.copy_to(folder)
        return self._publish("policy", CHECKPOINT_KIND)

    def _reward_model(self, seed: int) -> ArtifactRef:
        folder = self._draft(f"reward-{seed}")
        generator = torch.Generator().manual_seed(seed)
        model = RewardModel.from_causal(self._causal(seed), generator)
        with torch.no_grad():
            model.score.weight.mul_(4)
        save_reward(folder, self._shape, model.state_dict(), **special_ids(self.tokenizer))
        self.tokenizer.copy_to(folder)
        return self._publish(folder.name, CHECKPOINT_KIND)

    def _token_shards(self) -> ArtifactRef:
        rows = [
            {
                "document_id": f"d{i}",
                "source": "ab"[i % 2],
                "split": "validation" if i >= 12 else "train",
                "num_bytes": len(text),
                "tokens": [
                    self.tokenizer.bos_id,
                    *self.tokenizer.encode(text),
                    self.tokenizer.eos_id,
                ],
            }
            for i, text in enumerate(TEXTS[:16])
        ]
        return self._table("shards", "token_shards", rows)

    def _demonstrations(self) -> ArtifactRef:
        rows = [
            {
                "demonstration_id": f"demo-{i}",
                "source": "own",
                "messages": [
                    {"role": "user", "content": f"Tell of number {i}.", "loss": False},
                    {"role": "assistant", "content": TEXTS[i], "loss": True},
                ],
            }
            for i in range(18)
        ]
        return self._table("demonstrations", "demonstrations", rows)

    def _prompts(self) -> ArtifactRef:
        rows = [
            {
                "prompt_id": f"prompt-{i}",
                "domain": ("helpfulness", "safety")[i % 2],
                "source": "own",
                "split": "train" if i < 15 else "validation",
                "category": None,
                "messages": [{"role": "user", "content": f"What of {TEXTS[i][4:12]}?"}],
            }
            for i in range(19)
        ]
        return self._table("prompts", "prompts", rows)

    def _preferences(self, name: str, num_train: int, num_test: int) -> ArtifactRef:
        rows = [
            {
                "preference_id": f"{name}-{i}",
                "prompt_id": f"prompt-{i}",
                "domain": "safety",
                "source": name,
                "batch": 1,
                "split": "train" if i < num_train else "test",
                "annotator": "a1",
                "category": None,
                "messages": [{"role": "user", "content": f"What of {name} number {i}?"}],
                "chosen": TEXTS[i],
                "rejected": TEXTS[-1 - i],
                "rating": ("better", "slightly_better")[i % 2],
                "safety_label": ("both_safe", "chosen_safe_other_unsafe")[i % 2],
            }
            for i in range(num_train + num_test)
        ]
        return self._table(f"preferences-{name}", "preferences", rows)
