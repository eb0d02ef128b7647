"""Pretrain the base model on weighted sources (§2.2).

    rlhf stage pretrain --recipe demo
    torchrun --nproc-per-node 8 -m stages.pretrain --config pretrain.json --home RLHF_HOME

Or skip it: `init_from` names a Hugging Face Llama folder that becomes the base model as it is.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from kernels.hf_layout import save_causal
from kernels.model import CausalLM, ModelConfig
from stages.models.batches import Example, collate, share_of_rank
from stages.models.corpus import BlockSampler, TokenStreams
from stages.models.folders import CHECKPOINT_KIND, load_policy_folder, save_policy, special_ids
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings
from stages.runtime.schedules import cosine_with_warmup
from stages.runtime.settings import CheckpointSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.throughput import Meter
from stages.text.tokenizer import Tokenizer

VERSION = "1"

HeldOut = tuple[list[np.ndarray], float]
"""Blocks of sequence_length + 1 tokens, and bytes per token."""


class ModelSettings(Contract):
    """Architecture of the base model (Table 1); the vocabulary is the tokenizer's."""

    dim: int = Field(default=4096, gt=0)
    n_layers: int = Field(default=32, gt=0)
    n_heads: int = Field(default=32, gt=0)
    n_kv_heads: int = Field(default=32, gt=0)
    ffn_hidden: int = Field(default=11008, gt=0)
    max_seq_len: int = Field(default=4096, gt=1)
    """Context length in tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0, allow_inf_nan=False)
    norm_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    tie_embeddings: bool = False

    @model_validator(mode="after")
    def _is_an_architecture(self) -> "ModelSettings":
        self.config(vocab_size=1)  # raises ValueError where heads do not divide as they must
        return self

    def config(self, vocab_size: int) -> ModelConfig:
        """The kernel's configuration for this architecture and vocabulary."""
        return ModelConfig(vocab_size=vocab_size, **self.model_dump())


class ExternalModel(Contract):
    """A Hugging Face Llama folder, known by the digest of its files."""

    path: Path = Field(json_schema_extra={"in_key": False})
    digest: str = ""
    """sha256 over the folder's files; filled in when the run is planned."""


class PretrainSettings(CheckpointSettings):
    """The paper's pretraining settings (§2.2)."""

    model: ModelSettings = ModelSettings()
    init_from: ExternalModel | None = None
    """Take this model as the base model and train nothing."""
    source_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """Sampling share of each source; sources that are not named share nothing. Empty: by size."""
    num_tokens: int = Field(default=2_000_000_000_000, gt=0)
    """Tokens to train on; sources repeat (in another order) when they run out."""
    sequence_length: int = Field(default=4096, gt=1)
    global_batch_size: int = Field(default=1024, gt=0)
    """Sequences per optimizer step, over all ranks; 1,024 × 4,096 = the paper's 4M tokens."""
    micro_batch_size: int = Field(default=4, gt=0, json_schema_extra={"in_key": False})
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak; the paper uses 1.5e-4 for 34B and 70B."""
    final_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=2000, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    mask_documents: bool = False
    """Keep attention inside each document. Llama 2 attends across, Llama 3 masks."""
    checkpoint_every: int = Field(default=500, gt=0, json_schema_extra={"in_key": False})
    """Optimizer steps from one checkpoint to the next."""
    num_validation_sequences: int = Field(default=64, gt=0)
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _check(self) -> "PretrainSettings":
        if self.sequence_length > self.model.max_seq_len:
            raise ValueError(
                f"sequence_length {self.sequence_length} exceeds model.max_seq_len "
                f"{self.model.max_seq_len}: lower the one or raise the other"
            )
        if self.num_tokens < (step := self.global_batch_size * self.sequence_length):
            raise ValueError(
                f"num_tokens {self.num_tokens} is less than one step of {step} tokens: raise it, "
                "or lower global_batch_size"
            )
        return self


class Config(StageConfig, PretrainSettings):
    """Settings and inputs of one pretraining run."""

    token_shards: ArtifactRef
    tokenizer: ArtifactRef


def run(config: Config, work: WorkDir) -> StageOutput:
    """Build, loop over an exact schedule, report bits per byte before and after, save."""
    if config.init_from is not None:
        return adopt(config.init_from, work)
    tokenizer = Tokenizer.load(work.input(config.tokenizer))
    streams = TokenStreams.read(work.input(config.token_shards))
    sampler = BlockSampler(
        streams.train,
        config.source_weights,
        num_blocks=num_steps(config) * config.global_batch_size,
        sequence_length=config.sequence_length,
        seed=config.seed,
    )
    model = CausalLM(
        config.model.config(tokenizer.vocab_size), torch.Generator().manual_seed(config.seed)
    )
    engine = build_engine(config, model, work)
    held_out = streams.validation_blocks(config.sequence_length, config.num_validation_sequences)

    before = train(config, engine, sampler, held_out, tokenizer.bos_id, work)
    after = bits_per_byte(engine, held_out, config, tokenizer.bos_id, work)

    return StageOutput(
        {"model": save_policy(work, "model", engine, model.config, tokenizer)},
        {
            "bits_per_byte_before": before,
            "bits_per_byte_after": after,
            "num_tokens": num_steps(config) * step_tokens(config),
            **{f"share/{name}": share for name, share in sampler.shares().items()},
        },
    )


def adopt(source: ExternalModel, work: WorkDir) -> StageOutput:
    """Check a Hugging Face folder by loading it, and publish it in our layout."""
    model, tokenizer = load_policy_folder(source.path)
    folder = work.output("model")
    if work.rank.is_main:
        save_causal(folder, model.config, model.state_dict(), **special_ids(tokenizer))
        tokenizer.copy_to(folder)
    return StageOutput(
        {"model": (folder, CHECKPOINT_KIND)},
        {"num_parameters": float(model.config.num_parameters())},
    )


def step_tokens(config: Config) -> int:
    """Tokens that one optimizer step reads; what `num_tokens` counts."""
    return config.global_batch_size * config.sequence_length


def num_steps(config: Config) -> int:
    """The exact schedule: as many whole steps as the token budget pays for, one at least."""
    return config.num_tokens // step_tokens(config)


def build_engine(config: Config, model: CausalLM, work: WorkDir) -> Engine:
    """The model under AdamW with the paper's cosine schedule."""
    optimizer = OptimizerSettings(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        gradient_clipping=config.gradient_clipping,
    )
    schedule = cosine_with_warmup(
        num_steps(config),
        min(config.warmup_steps, num_steps(config) - 1),
        config.learning_rate,
        config.final_learning_rate_ratio,
    )
    return Engine(model, optimizer, schedule, config.engine, work.rank)


def train(
    config: Config,
    engine: Engine,
    sampler: BlockSampler,
    held_out: HeldOut,
    bos_id: int,
    work: WorkDir,
) -> float:
    """All steps of the schedule, or what a resumed run has left of them.

    Returns the bits per byte of held-out text before the first step.
    """
    total_steps, size = num_steps(config), config.global_batch_size
    meter = Meter(config.engine.precision, work.rank)
    with Checkpointer(work.checkpoints, work.rank, config) as checkpointer:
        first_step, extra = checkpointer.restore({"policy": engine})
        before = extra.get("bits_per_byte_before") or bits_per_byte(
            engine, held_out, config, bos_id, work
        )
        for step in range(first_step, total_steps):
            indices = range(step * size, (step + 1) * size)
            blocks = [sampler.block(i) for i in indices]
            ids = [sampler.block_id(i) for i in indices]
            with meter.step():
                loss = train_step(engine, blocks, ids, config, bos_id, work)
            speed = meter.training(engine.module, document_lengths(blocks, config, bos_id))
            stats = engine.last_step.as_metrics("train")
            work.track(step, {"train/loss": loss, **stats, **speed})
            work.progress(step + 1, total_steps, "step", loss=loss, tokens=step_tokens(config))
            checkpointer.maybe_save(step + 1, {"policy": engine}, {"bits_per_byte_before": before})
    return before


def train_step(
    engine: Engine,
    blocks: Sequence[np.ndarray],
    ids: Sequence[str],
    config: Config,
    bos_id: int,
    work: WorkDir,
) -> float:
    """One optimizer step; returns the mean loss in nats per predicted token over all ranks."""
    num_predicted = num_predicted_tokens(blocks, config, bos_id)
    micro_batches = share_of_rank(blocks, work.rank, config.micro_batch_size)
    micro_ids = share_of_rank(ids, work.rank, config.micro_batch_size)
    total = 0.0
    for i, micro_batch in enumerate(micro_batches):
        examples = [e for block in micro_batch for e in documents_of(block, config, bos_id)]
        flat = collate(examples, work.rank.device)
        loss = engine(flat.tokens, flat.documents, flat.rows, flat.targets)
        loss = loss / num_predicted
        engine.backward(loss, i == len(micro_batches) - 1, micro_ids[i])
        total += loss.item()
    engine.step()
    return work.rank.sum(total)


def num_predicted_tokens(blocks: Sequence[np.ndarray], config: Config, bos_id: int) -> int:
    """Tokens of a global batch that have a loss: all but the first of each of `documents_of`."""
    learned = np.stack(blocks)[:, 1:]
    return int((learned != bos_id).sum()) if config.mask_documents else learned.size


def documents_of(block: np.ndarray, config: Config, bos_id: int) -> list[Example]:
    """A block of sequence_length + 1 tokens as one document, or cut where documents begin."""
    if not config.mask_documents:
        return [Example(block.tolist(), [True] * len(block))]
    starts = [0, *(int(i) for i in np.flatnonzero(block == bos_id) if i > 0), len(block)]
    pieces = [block[a:b] for a, b in pairwise(starts)]
    return [Example(piece.tolist(), [True] * len(piece)) for piece in pieces if len(piece) > 1]


def document_lengths(blocks: Sequence[np.ndarray], config: Config, bos_id: int) -> list[int]:
    """Tokens that each of `documents_of` feeds."""
    if not config.mask_documents:
        return [len(block) - 1 for block in blocks]
    return [len(e.tokens) - 1 for block in blocks for e in documents_of(block, config, bos_id)]


def bits_per_byte(
    engine: Engine, held_out: HeldOut, config: Config, bos_id: int, work: WorkDir
) -> float:
    """Cross-entropy of held-out text in bits per UTF-8 byte: comparable across tokenizers.

    Blocks are read as they are in training. A BOS that is no target there stands for no bytes.
    """
    blocks, bytes_per_token = held_out
    if not blocks:
        return math.nan
    total, count = 0.0, 0
    with torch.no_grad():
        for micro_batch in share_of_rank(blocks, work.rank, config.micro_batch_size):
            examples = [e for block in micro_batch for e in documents_of(block, config, bos_id)]
            flat = collate(examples, work.rank.device)
            total += float(engine(flat.tokens, flat.documents, flat.rows, flat.targets))
            count += sum(len(block) - 1 for block in micro_batch)
    nats = work.rank.sum(total) / work.rank.sum(float(count))
    return nats / math.log(2) / bytes_per_token


if __name__ == "__main__":
    main(Config, run)
