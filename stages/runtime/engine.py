"""Training on DeepSpeed: one optimizer step over any number of micro-batches and ranks.

The only importer of deepspeed, and that inside functions: importing it takes a second, and the
command line's help must not wait for it. How DeepSpeed is used here:

- ZeRO 0-3 by `EngineSettings`; the optimizer is torch's AdamW, so that nothing is compiled.
- The caller's losses add up. DeepSpeed averages gradients over ranks, so each loss is multiplied by
  the number of ranks; it would divide by a fixed number of accumulation steps, which is set to 1,
  and the boundary of a step is what the caller says is its last micro-batch.
- The learning rate is written before every update; there is no DeepSpeed scheduler.
- bf16 keeps fp32 masters and accumulates in fp32. The masters start from the fp32 weights, where
  DeepSpeed by itself starts them from weights already rounded to bf16.
"""

import contextlib
import io
import logging
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_contracts.errors import UserError
from stages.runtime.distributed import Rank
from stages.runtime.modules import (
    adamw,
    fp32_weights,
    materialized,
    on_meta,
    set_activation_checkpointing,
    to_bf16,
)
from stages.runtime.quiet import absent, known_warnings
from stages.runtime.schedules import Schedule
from stages.runtime.settings import (
    DivergedError,
    EngineSettings,
    OptimizerSettings,
    StepStats,
    deepspeed_config,
    effective_stage,
)

__all__ = [
    "DivergedError",
    "Engine",
    "EngineSettings",
    "Frozen",
    "OptimizerSettings",
    "StepStats",
    "frozen",
]


class Engine:
    """A module under training. All ranks make the same calls in the same order.

    From ZeRO-2 on every `backward` exchanges gradients, so ranks must make equally many: a rank
    that runs out of samples passes `loss * 0`.
    """

    module: nn.Module
    """The module itself. From ZeRO-3 on its parameters are empty outside of its own forward."""
    num_steps: int
    """Optimizer steps made, over all resumed runs."""
    last_step: StepStats
    """Of the newest step."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerSettings,
        schedule: Schedule,
        settings: EngineSettings,
        rank: Rank,
    ) -> None:
        self.num_steps = 0
        self.last_step = StepStats(0.0, 0.0)
        self._schedule = schedule
        self._rank = rank
        self._clipping = optimizer.gradient_clipping
        self._stage = effective_stage(settings, rank)
        set_activation_checkpointing(module, settings.activation_checkpointing)
        self._blueprint = on_meta(module) if self._stage == 3 else None
        self._plain: nn.Module | None = None
        is_bf16 = settings.precision == "bf16"
        exact = fp32_weights(module) if is_bf16 and rank.is_main else {}
        self._fused = rank.device.type == "cuda"
        self._adamw = adamw(module, optimizer, schedule(0), self._fused)
        config = deepspeed_config(settings, self._stage, optimizer.gradient_clipping, module)
        self._deepspeed = _initialize(module, config, self._adamw)
        # Its hooks would keep weights and optimizer state of ZeRO alive for as long as the process.
        weakref.finalize(self, self._deepspeed.destroy).atexit = False
        self.module = self._deepspeed.module
        if is_bf16:
            self._set_masters(exact)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward. Under `torch.no_grad` it evaluates."""
        if self._stage > 0:
            self._deepspeed.optimizer.clear_backward_seen_flag()
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add this micro-batch's gradient; `last` says that `step` comes next.

        The loss is this micro-batch's share of the global loss: divided by the global batch's
        tokens or pairs, so that the shares of all micro-batches and ranks simply add up.
        """
        engine = self._deepspeed
        if self._rank.world_size > 1:
            loss = loss * self._rank.world_size
        engine.set_gradient_accumulation_boundary(last)
        if self._stage > 0:
            # What engine.forward hooks to tensors it finds in the output, hooked to the loss:
            # so it runs once per backward, whatever the output is made of.
            loss.register_hook(lambda gradient: engine._backward_prologue())
        engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> StepStats:
        """Clip, update the weights with the schedule's learning rate, forget the gradients.

        Raises DivergedError when the gradient is not finite.
        """
        learning_rate = self._schedule(self.num_steps)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        norm = self._update_replicated() if self._stage == 0 else self._update_sharded()
        if not math.isfinite(norm):
            raise DivergedError(self.num_steps, norm)
        self.num_steps += 1
        self.last_step = StepStats(learning_rate, norm)
        return self.last_step

    def full_state(self) -> dict[str, Tensor]:
        """The module's state_dict in fp32 on rank 0's CPU; {} on other ranks. All ranks call."""
        state: dict[str, Tensor] = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            full = self._full_value(value)
            if self._rank.is_main:
                dtype = torch.float32 if full.is_floating_point() else full.dtype
                state[name] = full.detach().to("cpu", dtype, copy=True)
        return state

    def load_full_state(self, state: Mapping[str, Tensor]) -> None:
        """Set all weights from a full fp32 state, read on rank 0 only. All ranks call.

        Optimizer state stays: this is for starting weights, `load` is for resuming.
        """
        self._set_masters(state)

    def plain_copy(self) -> nn.Module:
        """The unsharded module to generate with, on every rank; call `sync_copy` after updates.

        Up to ZeRO-2 that is the trained module itself (no copy, always up to date); with ZeRO-3 it
        is a second module into which the weights are gathered. All ranks call.
        """
        if self._blueprint is None:
            return self.module
        if self._plain is None:
            live = dict(self.module.named_parameters(remove_duplicate=False))
            self._plain = materialized(self._blueprint, live)
        self.sync_copy()
        return self._plain

    def sync_copy(self) -> None:
        """Bring the module of `plain_copy` up to date with the trained weights. All ranks call."""
        if self._plain is None:
            return
        targets = dict(self._plain.named_parameters())
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                with _gathered(parameter):
                    targets[name].copy_(parameter)
            for name, buffer in self.module.named_buffers():
                self._plain.get_buffer(name).copy_(buffer)

    def save(self, folder: Path) -> None:
        """Write this rank's share of weights and optimizer state. All ranks call."""
        share = {
            "zero_stage": self._stage,
            "num_steps": self.num_steps,
            "masters": [master.detach() for master in self._masters()],
            "adamw": [self._adamw.state[master] for master in self._masters()],
        }
        with (folder / self._file_name()).open("wb") as file:
            torch.save(share, file)

    def load(self, folder: Path) -> None:
        """Continue exactly where `save` was called. All ranks call.

        The number of ranks must be the same. Raises UserError when the ZeRO stage is another.
        """
        saved = torch.load(folder / self._file_name(), weights_only=True, map_location="cpu")
        if saved["zero_stage"] != self._stage:
            raise UserError(
                f"{folder} was saved with ZeRO-{saved['zero_stage']}, this run has "
                f"ZeRO-{self._stage}",
                f"Set zero_stage back, or remove {folder.parent} to start over",
            )
        with torch.no_grad():
            for master, weights, state in zip(
                self._masters(), saved["masters"], saved["adamw"], strict=True
            ):
                master.copy_(weights)
                # The step counter stays on the CPU unless AdamW is fused.
                self._adamw.state[master] = {
                    name: value.to(master.device if name != "step" or self._fused else "cpu")
                    for name, value in state.items()
                }
        self._publish_masters()
        self.num_steps = saved["num_steps"]

    def _file_name(self) -> str:
        return f"rank-{self._rank.index:05d}.pt"

    def _update_replicated(self) -> float:
        norm = nn.utils.clip_grad_norm_(
            (p for group in self._adamw.param_groups for p in group["params"]),
            self._clipping or math.inf,
        ).item()
        if math.isfinite(norm):
            self._deepspeed.step()
        return norm

    def _update_sharded(self) -> float:
        self._deepspeed.step()
        if self._deepspeed.optimizer.overflow:  # the step was skipped, its norm is an older one's
            return math.nan
        return float(self._deepspeed.get_global_grad_norm())

    def _masters(self) -> list[Tensor]:
        """The fp32 tensors AdamW updates: this rank's flat shards, or the parameters themselves."""
        optimizer = self._deepspeed.optimizer
        for name in _MASTERS:
            if hasattr(optimizer, name):
                return getattr(optimizer, name)
        return [p for group in self._adamw.param_groups for p in group["params"]]

    def _publish_masters(self) -> None:
        """Copy the masters to the weights that the module computes with, on every rank."""
        optimizer = self._deepspeed.optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            for i in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(i)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _set_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Set parameters and fp32 masters from full tensors by name, read on rank 0 only."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.module.named_parameters():
            full = self._from_main(weights.get(name), _shape(parameter))
            if self._stage == 0 or not parameter.requires_grad:
                with torch.no_grad(), _gathered(parameter, modified=True):
                    parameter.copy_(full)
            else:
                safe_set_full_fp32_param(parameter, full)
        self._publish_masters()

    def _full_value(self, value: Tensor) -> Tensor:
        """A parameter's exact weights, gathered from the ranks that hold them."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self._stage == 0 or not value.requires_grad:
            with _gathered(value):
                return value.detach().clone() if hasattr(value, "ds_id") else value
        full = safe_get_full_fp32_param(value)
        assert full is not None, "every trained parameter has an fp32 master"
        return full.view(_shape(value))

    def _from_main(self, value: Tensor | None, shape: torch.Size) -> Tensor:
        """Rank 0's tensor on every rank."""
        full = torch.empty(shape, device=self._rank.device)
        if self._rank.is_main:
            assert value is not None, "rank 0 has the full state"
            full.copy_(value)
        if self._rank.world_size > 1:
            dist.broadcast(full, src=0)
        return full


class Frozen:
    """A module that only evaluates: reference policy, reward model."""

    def __init__(self, module: nn.Module, settings: EngineSettings, rank: Rank) -> None:
        self.module = module.requires_grad_(False).eval()
        if settings.precision == "bf16":
            to_bf16(module)
        if settings.zero_stage == 3 and rank.world_size > 1:
            config = deepspeed_config(
                settings.model_copy(update={"offload_optimizer": False}), 3, 0.0, module
            )
            self.module = _initialize(module, config, None).module
        else:
            module.to(rank.device)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, in evaluation mode and without gradients."""
        return self.module(*args, **kwargs)


def frozen(module: nn.Module, settings: EngineSettings, rank: Rank) -> Frozen:
    """Freeze a module for evaluation: whole on every rank, sharded with ZeRO-3. All ranks call."""
    return Frozen(module, settings, rank)


_MASTERS = (
    "fp32_groups_flat_partition",  # ZeRO-1 in bf16
    "single_partition_of_fp32_groups",  # ZeRO-1 and 2
    "fp32_partitioned_groups_flat",  # ZeRO-3
)


def _initialize(
    module: nn.Module, config: dict[str, Any], optimizer: torch.optim.Optimizer | None
) -> Any:
    """The DeepSpeed engine around a module."""
    deepspeed = _deepspeed()
    with contextlib.redirect_stdout(io.StringIO()), known_warnings():  # banners
        if config["zero_optimization"]["stage"] == 3:
            _shard(module, config)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if dist.get_world_size() == 1:
        engine.enable_backward_allreduce = config["zero_optimization"]["stage"] > 0
    return engine


def _shard(module: nn.Module, config: dict[str, Any]) -> None:
    """Move and shard one weight after the other: a 70B model never has to fit on one device."""
    import deepspeed

    if "bf16" in config:
        to_bf16(module)
    deepspeed.zero.Init(module=module, config_dict_or_path=config, mem_efficient_linear=False)
    device = next(module.parameters()).device
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def _deepspeed() -> ModuleType:
    """Import DeepSpeed quietly, on the device torch has, with nothing to compile."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # it asks for it where there is no launcher
    with contextlib.redirect_stdout(io.StringIO()), known_warnings(), absent("mlflow"):
        import deepspeed
        import deepspeed.runtime.bf16_optimizer as bf16_optimizer
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Six forced memory reports, each with a full garbage collection: 2 s for every engine.
    bf16_optimizer.see_memory_usage = _no_report
    # A C++ extension it would build at every first start (27 s, needs g++); gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if deepspeed.comm.comm.cdb is None:
        deepspeed.init_distributed()
        _use_current_collectives(deepspeed.comm.comm.cdb)
    return deepspeed


def _no_report(*arguments: Any, **options: Any) -> None:
    pass


def _use_current_collectives(backend: Any) -> None:
    """torch 2.13 renamed two collectives and warns at every call of the old names."""
    for attribute, name in (
        ("all_gather_function", "all_gather_single"),
        ("reduce_scatter_function", "reduce_scatter_single"),
    ):
        if hasattr(dist, name):
            setattr(backend, attribute, getattr(dist, name))


@contextlib.contextmanager
def _gathered(parameter: Tensor, modified: bool = False) -> Iterator[None]:
    """The parameter in full inside the block, whether or not ZeRO-3 shards it."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0 if modified else None):
        yield


def _shape(parameter: Tensor) -> torch.Size:
    """The shape in full; a sharded parameter's own is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
