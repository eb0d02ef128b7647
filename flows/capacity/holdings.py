"""What each training stage holds on a rank: its models, and the passes it makes in turn.

Every function follows one stage's `run`. Memory is planned for the longest documents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flows.capacity import memory
from flows.capacity.memory import Kind, MicroBatch, State
from flows.capacity.workload import Workload
from kernels.decoding import PREFILL_TOKENS_CUDA
from kernels.model import ModelConfig
from stages.models.finetuning import FinetuningSettings
from stages.models.rollouts import MEASURING_TOKENS
from stages.models.scoring import SCORING_TOKENS
from stages.ppo import PpoSettings
from stages.pretrain import PretrainSettings
from stages.rejection_sampling import RejectionSamplingSettings
from stages.reward_model import RewardModelSettings
from stages.runtime.engine import EngineSettings


@dataclass(frozen=True)
class Knobs:
    """Settings that decide whether a stage fits, and leave its result alone."""

    engine: EngineSettings
    micro_batch_size: int
    generation_batch_size: int = 0
    """0 where nothing is sampled."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes of a rank: each part at its largest, and all that is held in each phase."""

    trained: State
    """Of the model that the stage hands on."""
    activations: int
    """Of the pass that holds the most, with the buffers of its collectives."""
    phases: Mapping[str, int]
    kv_cache: int = 0
    other_models: int = 0
    """PPO: value model, reference, both reward models; rejection sampling: the last two."""
    sampler: int = 0
    """A whole policy to sample from."""
    host: int = 0
    """In the machine's memory, for what this rank offloads."""

    @property
    def peak_phase(self) -> str:
        """The fullest phase."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> int:
        """Bytes of the fullest phase."""
        return self.phases[self.peak_phase]


def pretrain(
    settings: PretrainSettings, model: ModelConfig, knobs: Knobs, num_ranks: int
) -> StageMemory:
    """One policy; sequences are always full, and every token is predicted."""
    sequences = at_a_time(knobs.micro_batch_size, settings.global_batch_size, num_ranks)
    num_tokens = sequences * settings.sequence_length
    return _training(model, "policy", knobs.engine, MicroBatch(num_tokens, num_tokens), num_ranks)


def fine_tuning(
    settings: FinetuningSettings, model: ModelConfig, knobs: Knobs, num_ranks: int
) -> StageMemory:
    """One policy; the answers may fill the packed sequences."""
    sequences = at_a_time(knobs.micro_batch_size, settings.global_batch_size, num_ranks)
    num_tokens = sequences * settings.sequence_length
    return _training(model, "policy", knobs.engine, MicroBatch(num_tokens, num_tokens), num_ranks)


def reward_model(
    settings: RewardModelSettings, model: ModelConfig, knobs: Knobs, num_ranks: int
) -> StageMemory:
    """One scorer; a comparison is two documents."""
    documents = 2 * at_a_time(knobs.micro_batch_size, settings.global_batch_size, num_ranks)
    batch = MicroBatch(documents * settings.max_tokens, documents, "score")
    return _training(model, "scorer", knobs.engine, batch, num_ranks)


def rejection_sampling(
    settings: RejectionSamplingSettings,
    data: Workload,
    model: ModelConfig,
    knobs: Knobs,
    num_ranks: int,
) -> StageMemory:
    """The sampled policy, whole on every rank; then two scorers; then fine-tuning."""
    size = memory.element_bytes(knobs.engine)
    num_samples = sum(settings.num_prompts.values()) * settings.num_samples
    rows = at_a_time(knobs.generation_batch_size, num_samples, num_ranks)
    cache, sampling = _sampling(model, size, rows, settings.max_new_tokens, data)
    sampler = size * model.num_parameters()
    scorers = 2 * _frozen(model, "scorer", knobs.engine, num_ranks)
    scoring = _evaluating(model, knobs.engine, SCORING_TOKENS, num_ranks)
    tuned = fine_tuning(settings.finetuning, model, knobs, num_ranks)
    return StageMemory(
        tuned.trained,
        max(tuned.activations, sampling, scoring),
        {
            "sample": sampler + cache + sampling,
            "score": scorers + scoring,
            **tuned.phases,
        },
        kv_cache=cache,
        other_models=scorers,
        sampler=sampler,
        host=tuned.host,
    )


def ppo(
    settings: PpoSettings, data: Workload, model: ModelConfig, knobs: Knobs, num_ranks: int
) -> StageMemory:
    """Five models stay all along; each phase adds its own, sampling a whole policy."""
    engine = knobs.engine
    responses = at_a_time(knobs.micro_batch_size, settings.mini_batch_size, num_ranks)
    longest = min(model.max_seq_len, data.longest_prompt_tokens + settings.max_new_tokens)
    num_tokens, num_rows = responses * longest, responses * settings.max_new_tokens
    policy = _training(
        model, "policy", engine, MicroBatch(num_tokens, num_rows, "logprobs"), num_ranks
    )
    value = _training(
        model, "scorer", engine, MicroBatch(num_tokens, num_tokens, "score"), num_ranks
    )
    sampler = memory.plain_copy(model.num_parameters(), engine, num_ranks)
    frozen = _frozen(model, "policy", engine, num_ranks)
    frozen += 2 * _frozen(model, "scorer", engine, num_ranks)
    always = policy.trained.on_card + value.trained.on_card + frozen

    most = max(settings.batch_size, sum(settings.num_held_out_prompts.values()))
    rows = at_a_time(knobs.generation_batch_size, most, num_ranks)
    size = memory.element_bytes(engine)
    cache, sampling = _sampling(model, size, rows, settings.max_new_tokens, data)
    measuring = _evaluating(model, engine, MEASURING_TOKENS, num_ranks)
    updating = max(policy.activations, value.activations)
    reducing = max(m.phases["reduce"] - m.trained.on_card for m in (policy, value))
    return StageMemory(
        policy.trained,
        max(updating, measuring, sampling),
        {
            "sample": always + sampler + cache + sampling,
            "measure": always + measuring,
            "update": always + updating,
            "reduce": always + reducing,
        },
        kv_cache=cache,
        other_models=value.trained.on_card + frozen,
        sampler=sampler,
        host=policy.host + value.host,
    )


def at_a_time(batch_size: int, num_items: int, num_ranks: int) -> int:
    """Items that a rank handles side by side: its batch, or its whole share when that is less."""
    return min(batch_size, math.ceil(num_items / num_ranks))


def _training(
    model: ModelConfig, kind: Kind, engine: EngineSettings, batch: MicroBatch, num_ranks: int
) -> StageMemory:
    parameters = memory.num_parameters(model, kind)
    state = memory.trained_state(parameters, engine, num_ranks)
    passes = (
        memory.activations(model, engine, batch)
        + memory.gathered_weights(parameters, engine, num_ranks)
        + memory.reduction(model, parameters, engine, num_ranks)
    )
    reducing = memory.boundary(parameters, engine, num_ranks)
    phases = {"update": state.on_card + passes, "reduce": state.on_card + reducing}
    return StageMemory(state, passes, phases, host=state.host)


def _frozen(model: ModelConfig, kind: Kind, engine: EngineSettings, num_ranks: int) -> int:
    return memory.frozen_weights(memory.num_parameters(model, kind), engine, num_ranks)


def _evaluating(model: ModelConfig, engine: EngineSettings, num_tokens: int, num_ranks: int) -> int:
    gathered = memory.gathered_weights(model.num_parameters(), engine, num_ranks)
    size = memory.element_bytes(engine)
    return memory.evaluation(model, size, num_tokens) + gathered


def _sampling(
    model: ModelConfig, size: int, num_rows: int, max_new_tokens: int, data: Workload
) -> tuple[int, int]:
    """Bytes of the cache, and of what generation holds beside it."""
    longest_prompt = min(data.longest_prompt_tokens, model.max_seq_len - max_new_tokens)
    cache = memory.kv_cache(model, size, num_rows, longest_prompt + max_new_tokens)
    read = min(PREFILL_TOKENS_CUDA, num_rows * longest_prompt)
    return cache, memory.generation(model, size, cache, num_rows, read)
