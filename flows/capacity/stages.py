"""The training stages of a recipe, each with what it holds and what it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_contracts.errors import UserError
from data_contracts.ratings import Domain
from flows.capacity import compute, holdings
from flows.capacity.compute import Work
from flows.capacity.holdings import Knobs, StageMemory
from flows.capacity.workload import Workload
from flows.graph import STUDENT_BASE, reward_model_name
from flows.recipe import Recipe
from kernels.hf_config import load_config
from kernels.model import ModelConfig
from stages.pretrain import PretrainSettings


@dataclass(frozen=True)
class TrainingStage:
    """One training stage of a recipe."""

    name: str
    num_runs: int
    """Versions that run it."""
    key: str
    """Of the engine and the micro-batch size in the recipe, e.g. rejection_sampling.finetuning."""
    knobs: Knobs
    """As the recipe has them."""
    memory: Callable[[Knobs, int], StageMemory]
    """Of a rank, with these knobs on so many ranks."""
    work: Callable[[Knobs, int], Work]
    """Of one run."""

    def settings(self, knobs: Knobs) -> dict[str, object]:
        """Knobs by dotted key, as `--set` takes them."""
        values: dict[str, object] = {
            f"{self.key}.engine.zero_stage": knobs.engine.zero_stage,
            f"{self.key}.micro_batch_size": knobs.micro_batch_size,
            f"{self.key}.engine.activation_checkpointing": knobs.engine.activation_checkpointing,
            f"{self.key}.engine.offload_optimizer": knobs.engine.offload_optimizer,
        }
        if knobs.generation_batch_size:
            values[f"{self.name}.generation_batch_size"] = knobs.generation_batch_size
        return values


def planned_model(recipe: Recipe) -> ModelConfig:
    """The architecture that a recipe trains.

    Raises UserError when it is that of a folder which cannot be read.
    """
    return _architecture(recipe, recipe.pretrain, "pretrain")


def _architecture(recipe: Recipe, settings: PretrainSettings, key: str) -> ModelConfig:
    """The settings' own, or that of the folder that they start from; `key` leads to them."""
    external = settings.init_from
    if external is None:
        return settings.model.config(recipe.tokenizer.vocab_size)
    folder = (recipe.data_dir or Path()) / external.path.expanduser()
    try:
        return load_config(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The architecture of {folder} cannot be read: {error}",
            f"Correct {key}.init_from.path in the recipe, or --data DIR",
        ) from error


def training_stages(recipe: Recipe, model: ModelConfig, data: Workload) -> list[TrainingStage]:
    """Every stage that trains, in the order in which they first run."""
    stages = _pretraining("pretrain", "pretrain", recipe.pretrain, model)
    stages += _student_base(recipe)
    stages.append(_sft(recipe, model, data))
    if recipe.num_versions > 0:
        stages += [_reward_model(recipe, domain, model, data) for domain in Domain]
        stages.append(_rejection_sampling(recipe, model, data))
    if recipe.num_versions >= recipe.ppo_from_version:
        stages.append(_ppo(recipe, model, data))
    if recipe.num_versions > 0:
        stages += _distillation(recipe, data)
    return stages


def _pretraining(
    name: str, key: str, settings: PretrainSettings, model: ModelConfig
) -> list[TrainingStage]:
    """None where the model comes from a folder."""
    if settings.init_from is not None:
        return []
    stage = TrainingStage(
        name,
        1,
        key,
        Knobs(settings.engine, settings.micro_batch_size),
        partial(holdings.pretrain, settings, model),
        lambda knobs, num_ranks: compute.pretrain(settings, model),
    )
    return [stage]


def _student_base(recipe: Recipe) -> list[TrainingStage]:
    if recipe.student is None:
        return []
    settings, key = recipe.student.pretrain, "student.pretrain"
    return _pretraining(STUDENT_BASE, key, settings, _architecture(recipe, settings, key))


def _distillation(recipe: Recipe, data: Workload) -> list[TrainingStage]:
    """The student learns the best answer to every prompt of rejection sampling."""
    if recipe.student is None:
        return []
    settings = recipe.student.distillation
    model = _architecture(recipe, recipe.student.pretrain, "student.pretrain")
    num_best = sum(recipe.rejection_sampling.num_prompts.values())
    samples = data.model_copy(update={"num_demonstrations": num_best})
    stage = TrainingStage(
        "distillation",
        recipe.num_versions,
        "student.distillation",
        Knobs(settings.engine, settings.micro_batch_size),
        partial(holdings.fine_tuning, settings, model),
        lambda knobs, num_ranks: compute.fine_tuning(settings, samples, model),
    )
    return [stage]


def _sft(recipe: Recipe, model: ModelConfig, data: Workload) -> TrainingStage:
    settings = recipe.sft
    return TrainingStage(
        "sft",
        1,
        "sft",
        Knobs(settings.engine, settings.micro_batch_size),
        partial(holdings.fine_tuning, settings, model),
        lambda knobs, num_ranks: compute.fine_tuning(settings, data, model),
    )


def _reward_model(
    recipe: Recipe, domain: Domain, model: ModelConfig, data: Workload
) -> TrainingStage:
    key = f"{domain.value}_rm"
    settings = recipe.helpfulness_rm if domain is Domain.helpfulness else recipe.safety_rm
    return TrainingStage(
        reward_model_name(domain),
        recipe.num_versions,
        key,
        Knobs(settings.engine, settings.micro_batch_size),
        partial(holdings.reward_model, settings, model),
        lambda knobs, num_ranks: compute.reward_model(settings, data, model),
    )


def _rejection_sampling(recipe: Recipe, model: ModelConfig, data: Workload) -> TrainingStage:
    settings, tuning = recipe.rejection_sampling, recipe.rejection_sampling.finetuning
    return TrainingStage(
        "rejection_sampling",
        recipe.num_versions,
        "rejection_sampling.finetuning",
        Knobs(tuning.engine, tuning.micro_batch_size, settings.generation_batch_size),
        partial(holdings.rejection_sampling, settings, data, model),
        partial(compute.rejection_sampling, settings, data, model),
    )


def _ppo(recipe: Recipe, model: ModelConfig, data: Workload) -> TrainingStage:
    settings = recipe.ppo
    return TrainingStage(
        "ppo",
        recipe.num_versions - recipe.ppo_from_version + 1,
        "ppo",
        Knobs(settings.engine, settings.micro_batch_size, settings.generation_batch_size),
        partial(holdings.ppo, settings, data, model),
        partial(compute.ppo, settings, data, model),
    )
