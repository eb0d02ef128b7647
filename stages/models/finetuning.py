"""Fine-tuning on answers (§3.1): used by SFT and by the best-of-K step of rejection sampling.

Prompts and answers are packed to fill the sequence, documents do not see each other, and the
loss is that of answer tokens alone, averaged over all of them in the global batch.
"""

import math
from collections.abc import Sequence

from pydantic import Field

from kernels.model import CausalLM
from stages.models.batches import Example, collate, share_of_rank, shuffled
from stages.runtime.checkpoints import Checkpointer
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings
from stages.runtime.schedules import cosine_with_warmup
from stages.runtime.settings import CheckpointSettings
from stages.runtime.stage import WorkDir
from stages.runtime.throughput import Meter
from stages.text.packing import pack


class FinetuningSettings(CheckpointSettings):
    """The paper's SFT settings (§3.1)."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak of the cosine schedule."""
    final_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps; the paper does not state SFT's, this is its reward models'."""
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    sequence_length: int = Field(default=4096, gt=1)
    """Tokens in a packed sequence."""
    global_batch_size: int = Field(default=64, gt=0)
    """Packed sequences per optimizer step, over all ranks."""
    micro_batch_size: int = Field(default=1, gt=0, json_schema_extra={"in_key": False})
    """Packed sequences per forward pass and rank."""
    num_epochs: int = Field(default=2, gt=0)
    engine: EngineSettings = EngineSettings()

    def optimizer(self) -> OptimizerSettings:
        """AdamW as everywhere in the paper, with this stage's decay and clipping."""
        return OptimizerSettings(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            gradient_clipping=self.gradient_clipping,
        )


class PackedEpochs:
    """The order of training: which packed sequences make up the global batch of each step.

    A pure function of (examples, settings, seed, step), so a resumed run needs only its step.
    """

    def __init__(
        self, examples: Sequence[Example], settings: FinetuningSettings, seed: int
    ) -> None:
        self._examples = examples
        self._sequences = pack([len(e.tokens) for e in examples], settings.sequence_length)
        self._batch_size = settings.global_batch_size
        self._seed = seed
        self.steps_per_epoch = math.ceil(len(self._sequences) / self._batch_size)
        self.num_steps = self.steps_per_epoch * settings.num_epochs

    def batch(self, step: int) -> list[list[Example]]:
        """The packed sequences of one step; each is a list of documents."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = shuffled(len(self._sequences), self._seed, epoch)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        return [[self._examples[i] for i in self._sequences[s]] for s in chosen]


def finetune(
    model: CausalLM,
    examples: Sequence[Example],
    settings: FinetuningSettings,
    seed: int,
    work: WorkDir,
) -> Engine:
    """Train `model` on `examples` and return its engine; progress and loss go to `work`."""
    epochs = PackedEpochs(examples, settings, seed)
    warmup_steps = min(math.ceil(settings.warmup_ratio * epochs.num_steps), epochs.num_steps - 1)
    schedule = cosine_with_warmup(
        epochs.num_steps, warmup_steps, settings.learning_rate, settings.final_learning_rate_ratio
    )
    engine = Engine(model, settings.optimizer(), schedule, settings.engine, work.rank)
    meter = Meter(settings.engine.precision, work.rank)
    with Checkpointer(work.checkpoints, work.rank, settings) as checkpointer:
        first_step, _ = checkpointer.restore({"policy": engine})
        for step in range(first_step, epochs.num_steps):
            batch = epochs.batch(step)
            with meter.step():
                loss = train_step(engine, batch, settings.micro_batch_size, work)
            lengths = [len(e.tokens) for sequence in batch for e in sequence]
            stats = engine.last_step.as_metrics("train") | meter.training(model, lengths)
            work.track(step, {"train/loss": loss, **stats})
            work.progress(step + 1, epochs.num_steps, "step", loss=loss, tokens=sum(lengths))
            checkpointer.maybe_save(step + 1, {"policy": engine})
    return engine


def train_step(
    engine: Engine, batch: list[list[Example]], micro_batch_size: int, work: WorkDir
) -> float:
    """One optimizer step on packed sequences; returns the loss per answer token, over all ranks."""
    num_loss_tokens = sum(e.num_loss_tokens for sequence in batch for e in sequence)
    micro_batches = share_of_rank(batch, work.rank, micro_batch_size)
    total = 0.0
    for i, sequences in enumerate(micro_batches):
        examples = [e for sequence in sequences for e in sequence]
        flat = collate(examples, work.rank.device)
        loss = engine(flat.tokens, flat.documents, flat.rows, flat.targets)
        loss = loss / max(num_loss_tokens, 1)
        engine.backward(loss, i == len(micro_batches) - 1, [e.id for e in examples])
        total += loss.item()
    engine.step()
    return work.rank.sum(total)
