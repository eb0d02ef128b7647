"""How a model is trained: numbers a recipe holds, what DeepSpeed makes of them, a step's report."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from data_contracts.base import Contract
from stages.runtime.distributed import Rank

_NOT_IN_KEY: dict[str, Any] = {"in_key": False}
BUCKET_ELEMENTS = 50_000_000
"""Elements per collective; DeepSpeed's 500M would be 2 GB of buffer for any model."""
_PERSISTENT_ELEMENTS = 100_000
"""ZeRO-3 keeps parameters below this size on every rank (norms): gathering them costs latency."""


class AdamSettings(Contract):
    """AdamW's constants as in §2.2, where libraries differ in value and place (trap 23)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-5, gt=0)
    """Added outside the square root."""


class EngineSettings(Contract):
    """How a model is trained. Precision and Adam alone change the result beyond rounding."""

    zero_stage: Literal[0, 1, 2, 3] = Field(default=0, json_schema_extra=_NOT_IN_KEY)
    """Shard nothing, optimizer state, gradients as well, weights as well."""
    precision: Literal["fp32", "bf16"] = "fp32"
    adam: AdamSettings = AdamSettings()
    activation_checkpointing: bool = Field(default=False, json_schema_extra=_NOT_IN_KEY)
    """Recompute each block's activations in the backward pass."""
    offload_optimizer: bool = Field(default=False, json_schema_extra=_NOT_IN_KEY)
    """Keep optimizer state and its step in host memory."""
    max_skipped_in_a_row: int = Field(default=3, ge=0, json_schema_extra=_NOT_IN_KEY)
    """Steps whose loss or gradient is not finite are skipped; one more in a row ends training."""
    max_skipped_steps: int = Field(default=20, ge=0, json_schema_extra=_NOT_IN_KEY)
    """The same for skipped steps in all."""

    @model_validator(mode="after")
    def _check(self) -> "EngineSettings":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer shards by ZeRO: set zero_stage to 1, 2 or 3")
        return self


class CheckpointSettings(Contract):
    """When a stage saves what it would resume from; part of the settings of stages that train."""

    checkpoint_every: int = Field(default=100, gt=0, json_schema_extra=_NOT_IN_KEY)
    """Optimizer steps (PPO: iterations) from one checkpoint to the next."""
    keep_checkpoints: int = Field(default=2, gt=0, json_schema_extra=_NOT_IN_KEY)
    """How many of the newest stay: should one be torn, the one before it is used."""


class OptimizerSettings(Contract):
    """What a stage asks of AdamW; its constants are the engine's."""

    learning_rate: float
    """The schedule's peak, recorded here; the schedule itself says what each step uses."""
    weight_decay: float = 0.1
    """Not applied to vectors (norms)."""
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 does not clip."""


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did."""

    learning_rate: float
    gradient_norm: float
    """Global norm before clipping; not finite when the step was skipped."""
    num_skipped: int
    """Steps skipped so far because their loss or gradient was not finite."""

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """For `WorkDir.track`, e.g. train/learning_rate."""
        return {
            f"{prefix}/learning_rate": self.learning_rate,
            f"{prefix}/gradient_norm": self.gradient_norm,
            f"{prefix}/skipped_steps": float(self.num_skipped),
        }


def effective_stage(settings: EngineSettings, rank: Rank) -> int:
    """The ZeRO stage that settings come to on so many ranks."""
    if settings.precision == "bf16" and settings.zero_stage == 0:
        return 1  # without ZeRO, DeepSpeed's bf16 has no fp32 masters
    # On one rank ZeRO-3 shards nothing, costs up to half as much again, and is never freed.
    return min(settings.zero_stage, 2) if rank.world_size == 1 else settings.zero_stage


def deepspeed_config(
    settings: EngineSettings, stage: int, clipping: float, module: nn.Module
) -> dict[str, Any]:
    """DeepSpeed's configuration; its batch sizes are placeholders, it only ever divides by one."""
    bucket = min(BUCKET_ELEMENTS, max(sum(p.numel() for p in module.parameters()), 1))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clipping if stage > 0 else 0.0,
        "steps_per_print": None,
        # its clock waits for the GPU twice a step, and in every forward pass
        "timers": {"throughput": {"enabled": False}},
        "zero_force_ds_cpu_optimizer": False,  # its own CPU Adam would have to be compiled
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": _PERSISTENT_ELEMENTS,
        },
    }
    if settings.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if stage == 1:  # the sums of all micro-batches, once a step: rounded, fp32 was for nothing
            config["communication_data_type"] = "fp32"
    return config
