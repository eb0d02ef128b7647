"""Arithmetic of a stage, and the time, energy and carbon it takes on given cards.

Two kinds of work: passes over whole documents, which run at a share of the card's peak (MFU), and
the writing of responses token by token, which reads all weights and the cache for every token and
runs at a share of the card's memory bandwidth.
"""

import math
from dataclasses import dataclass

from flows.capacity.holdings import Knobs, at_a_time
from flows.capacity.memory import Kind, element_bytes, kv_cache, num_parameters
from flows.capacity.workload import Workload
from flows.presets import SIZES, Size
from kernels.model import ModelConfig
from stages.models.finetuning import FinetuningSettings
from stages.ppo import PpoSettings
from stages.pretrain import PretrainSettings
from stages.rejection_sampling import RejectionSamplingSettings
from stages.reward_model import RewardModelSettings
from stages.runtime import throughput
from stages.runtime.cards import CARDS, Card, Precision, Site

PAPER_TOKENS = 2.0e12
"""Every size was pretrained on 2 trillion tokens (Table 1)."""
DEFAULT_MFU = 0.43
"""For other architectures: the mean of what Table 2 implies for the four sizes (38 to 46 %)."""


@dataclass(frozen=True)
class Machine:
    """Equal cards, one rank each, and where they stand."""

    card: Card
    num_gpus: int
    mfu: float
    """Share of the peak that passes over documents reach, in the convention of `training_flops`."""
    watts: float
    """Of one card at work."""
    site: Site
    decode_bandwidth: float
    """Share of the memory bandwidth that writing responses reaches."""


@dataclass(frozen=True)
class Decoding:
    """Responses written token by token."""

    num_tokens: float
    """Of all responses, over all ranks."""
    num_responses: int
    """That are asked for at a time, over all ranks."""
    num_rows: int
    """Of them, that a rank writes side by side."""
    bytes_read: float
    """For one token of every row: the weights, and the rows' keys and values."""


@dataclass(frozen=True)
class Passes:
    """Whole passes over documents: training, scoring, reading prompts."""

    flops: float
    """Of all of them, over all ranks."""
    num_items: int
    """Documents that the ranks share at a time; ranks beyond them have nothing to do."""


@dataclass(frozen=True)
class Work:
    """What one run of a stage computes, over all ranks."""

    num_tokens: float
    """Tokens of the documents that it trains on or samples, each time it meets them."""
    passes: tuple[Passes, ...]
    precision: Precision
    decoding: Decoding | None = None

    @property
    def flops(self) -> float:
        """Of all passes."""
        return sum(passes.flops for passes in self.passes)


@dataclass(frozen=True)
class Cost:
    """What one run of a stage takes."""

    hours: float
    gpu_hours: float
    tokens_per_second: float
    """Over all ranks."""
    kwh: float
    """At the meter."""
    tco2eq: float


def pretrain(settings: PretrainSettings, model: ModelConfig) -> Work:
    """The token budget, in full sequences."""
    length = settings.sequence_length
    flops = document_flops(model, "policy", settings.num_tokens / length, length)
    passes = Passes(flops, settings.global_batch_size)
    return Work(settings.num_tokens, (passes,), settings.engine.precision)


def fine_tuning(settings: FinetuningSettings, data: Workload, model: ModelConfig) -> Work:
    """Every demonstration, every epoch; packing leaves a document its own attention."""
    num_documents, length = settings.num_epochs * data.num_demonstrations, data.document_tokens
    flops = document_flops(model, "policy", num_documents, length)
    passes = Passes(flops, settings.global_batch_size)
    return Work(num_documents * length, (passes,), settings.engine.precision)


def reward_model(settings: RewardModelSettings, data: Workload, model: ModelConfig) -> Work:
    """Both sides of every comparison."""
    num_documents, length = 2 * settings.num_epochs * data.num_comparisons, data.document_tokens
    flops = document_flops(model, "scorer", num_documents, length)
    passes = Passes(flops, settings.global_batch_size)
    return Work(num_documents * length, (passes,), settings.engine.precision)


def rejection_sampling(
    settings: RejectionSamplingSettings,
    data: Workload,
    model: ModelConfig,
    knobs: Knobs,
    num_ranks: int,
) -> Work:
    """K samples of each prompt, which is read once; two scores of each; the best are learnt."""
    num_prompts, length = sum(settings.num_prompts.values()), data.document_tokens
    num_samples = num_prompts * settings.num_samples
    reading = document_flops(model, "policy", num_prompts, data.prompt_tokens) / 3
    scoring = 2 * document_flops(model, "scorer", num_samples, length) / 3
    num_learnt = settings.finetuning.num_epochs * num_prompts
    learning = document_flops(model, "policy", num_learnt, length)
    rows = at_a_time(knobs.generation_batch_size, num_samples, num_ranks)
    return Work(
        num_samples * length,
        (
            Passes(reading + scoring, num_samples),
            Passes(learning, settings.finetuning.global_batch_size),
        ),
        settings.finetuning.engine.precision,
        _decoding(
            model,
            element_bytes(settings.finetuning.engine),
            num_samples,
            num_samples,
            rows,
            data,
        ),
    )


def ppo(
    settings: PpoSettings, data: Workload, model: ModelConfig, knobs: Knobs, num_ranks: int
) -> Work:
    """All iterations, early stopping left aside, with the held-out evaluations between them.

    Every response is sampled, measured by policy and reference and scored twice; those of the
    batch are valued as well, and learnt by policy and value model.
    """
    length = data.document_tokens
    num_learnt = settings.num_iterations * settings.batch_size
    num_evaluations = 1 + math.ceil(settings.num_iterations / settings.evaluate_every)
    num_sampled = num_learnt + num_evaluations * sum(settings.num_held_out_prompts.values())
    reading = document_flops(model, "policy", num_sampled, data.prompt_tokens) / 3
    measuring = 2 * document_flops(model, "policy", num_sampled, length) / 3
    scoring = 2 * document_flops(model, "scorer", num_sampled, length) / 3
    valuing = document_flops(model, "scorer", num_learnt, length) / 3
    learning = document_flops(model, "policy", num_learnt, length)
    learning += document_flops(model, "scorer", num_learnt, length)
    rows = at_a_time(knobs.generation_batch_size, settings.batch_size, num_ranks)
    return Work(
        num_sampled * length,
        (
            Passes(reading + measuring + scoring + valuing, settings.batch_size),
            Passes(learning, settings.mini_batch_size),
        ),
        settings.engine.precision,
        _decoding(
            model, element_bytes(settings.engine), num_sampled, settings.batch_size, rows, data
        ),
    )


def document_flops(model: ModelConfig, kind: Kind, num_documents: float, length: int) -> float:
    """To train on so many documents of one length; a pass without gradients is a third of it."""
    return num_documents * throughput.document_flops(model, num_parameters(model, kind), length)


def cost(work: Work, machine: Machine) -> Cost:
    """Time, energy and carbon of one run; GPUs that wait for the others are paid for."""
    reached = machine.mfu * machine.card.peak_flops(work.precision)
    seconds = decoding_seconds(work.decoding, machine)
    for passes in work.passes:
        seconds += passes.flops / (reached * ranks_at_work(passes.num_items, machine.num_gpus))
    gpu_hours = machine.num_gpus * seconds / 3600
    gpu_kwh = gpu_hours * machine.watts / 1000
    return Cost(
        hours=seconds / 3600,
        gpu_hours=gpu_hours,
        tokens_per_second=work.num_tokens / seconds,
        kwh=machine.site.kwh(gpu_kwh),
        tco2eq=machine.site.kgco2(gpu_kwh) / 1000,
    )


def ranks_at_work(num_items: int, num_ranks: int) -> float:
    """How many ranks could do the same in the same time if all were busy: each item is one rank's,
    and the rounds that the fullest rank needs are everybody's."""
    return num_items / math.ceil(num_items / num_ranks)


def decoding_seconds(decoding: Decoding | None, machine: Machine) -> float:
    """Every rank writes one token of each of its rows at the price of one read."""
    if decoding is None:
        return 0.0
    num_ranks = min(machine.num_gpus, decoding.num_responses)
    num_reads = decoding.num_tokens / (num_ranks * decoding.num_rows)
    bandwidth = machine.decode_bandwidth * machine.card.bandwidth_tb * 1e12
    return num_reads * decoding.bytes_read / bandwidth


def _decoding(
    model: ModelConfig,
    size: int,
    num_responses: float,
    at_once: int,
    num_rows: int,
    data: Workload,
) -> Decoding:
    """Of all responses, `at_once` of them asked for at a time."""
    mean_columns = data.prompt_tokens + data.response_tokens // 2
    weights = size * model.num_parameters()
    read = weights + kv_cache(model, size, num_rows, mean_columns)
    return Decoding(num_responses * data.response_tokens, at_once, num_rows, read)


def paper_size(model: ModelConfig) -> Size | None:
    """The published size that has this architecture."""
    shape = (model.dim, model.n_layers, model.n_heads, model.n_kv_heads, model.ffn_hidden)
    return next((size for size in SIZES.values() if size.shape == shape), None)


def assumed_mfu(model: ModelConfig) -> float:
    """What Table 2's GPU hours imply for a published size: a plan for it reproduces them."""
    size = paper_size(model)
    if size is None:
        return DEFAULT_MFU
    flops = model.flops_per_token(model.max_seq_len) * PAPER_TOKENS
    peak = CARDS["a100-80gb"].peak_flops("bf16")
    return flops / (size.pretraining_gpu_hours * 3600 * peak)
