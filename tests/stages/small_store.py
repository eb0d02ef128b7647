"""A store with two-layer models and a few prompts, for tests that run a whole sampling stage."""

from pathlib import Path

import torch

from data_contracts.artifacts import ArtifactRef
from data_contracts.parquet import write_table
from data_contracts.store import Store
from data_contracts.tables import CONTRACTS
from kernels.heads import RewardModel
from kernels.hf_layout import save_causal, save_reward
from kernels.model import CausalLM, ModelConfig
from stages.models import normalisation
from stages.models.folders import CHECKPOINT_KIND, special_ids
from stages.models.normalisation import Normalisation
from stages.runtime.distributed import Rank
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

TEXTS = [f"The {noun} has {i} old walls.\n" for i in range(30) for noun in ("garden", "river")]
VOCAB = 300
CONTEXT = 192


def small_tokenizer() -> Tokenizer:
    """As many pieces as the models embed, separators among them."""
    return Tokenizer.from_bytes(train_bpe(TEXTS, VOCAB))


def causal_lm(tokenizer: Tokenizer, seed: int = 1, context: int = CONTEXT) -> CausalLM:
    """A language model whose answers are some seven tokens long."""
    config = ModelConfig(VOCAB, 32, 2, 4, 2, 48, max_seq_len=context)
    model = CausalLM(config, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        # A constant in the first dimension of every token is the bias that a Llama has not.
        model.backbone.embedding.weight[:, 0] = 2.0
        model.lm_head.weight[tokenizer.eos_id, 0] += 0.25
        for piece in range(VOCAB):
            is_text = not (tokenizer.is_byte(piece) or tokenizer.is_control(piece))
            if piece == tokenizer.unk_id or not (is_text or piece == tokenizer.eos_id):
                model.lm_head.weight[piece, 0] -= 2.0  # else most answers would be no text
    return model


def small_store(
    folder: Path,
    prompts: list[dict[str, object]],
    context: int = CONTEXT,
    safety: Normalisation | None = None,
) -> tuple[WorkDir, dict[str, ArtifactRef]]:
    """A place to run a stage in, and its inputs by the names that configs give them."""
    attempt = folder / "work" / "key" / "attempt-1"
    attempt.mkdir(parents=True)
    work = WorkDir(attempt, Rank(0, 1, 0, torch.device("cpu")), Store.open(folder / "home"))
    tokenizer = small_tokenizer()
    policy, other = causal_lm(tokenizer, 1, context), causal_lm(tokenizer, 3, context)
    scorer = RewardModel.from_causal(other, torch.Generator().manual_seed(3))
    with torch.no_grad():
        scorer.score.weight.mul_(5)
    return work, {
        "policy": _model(work, folder / "policy", policy, tokenizer),
        "safety_rm": _model(work, folder / "safety", scorer, tokenizer, safety),
        "helpfulness_rm": _model(work, folder / "helpfulness", scorer, tokenizer),
        "prompts": table(work, folder / "prompts", "prompts", prompts),
    }


def prompt(
    name: str, *texts: str, domain: str = "helpfulness", **more: object
) -> dict[str, object]:
    """A row of the prompts table; texts are user and assistant in turn."""
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]
    row = {"prompt_id": name, "domain": domain, "source": "own", "split": "train"}
    return {**row, "category": None, "messages": messages, **more}


def table(work: WorkDir, folder: Path, contract: str, rows: list[dict[str, object]]) -> ArtifactRef:
    """Rows published under their contract."""
    folder.mkdir()
    write_table(folder / f"{contract}.parquet", rows, CONTRACTS[contract])
    return work.store.publish(folder, CONTRACTS[contract].kind)


def _model(
    work: WorkDir,
    folder: Path,
    model: CausalLM | RewardModel,
    tokenizer: Tokenizer,
    level: Normalisation | None = None,
) -> ArtifactRef:
    folder.mkdir()
    save = save_reward if isinstance(model, RewardModel) else save_causal
    save(folder, model.config, model.state_dict(), **special_ids(tokenizer))
    tokenizer.copy_to(folder)
    if level is not None:
        normalisation.write(folder, level)
    return work.store.publish(folder, CHECKPOINT_KIND)
