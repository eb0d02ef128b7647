"""Training on DeepSpeed: one optimizer step over any number of micro-batches and ranks.

How DeepSpeed is used here (`stages.runtime.zero` speaks to it):

- ZeRO 0-3 by `EngineSettings`; the optimizer is torch's AdamW, so that nothing is compiled.
- The caller's losses add up. DeepSpeed averages gradients over ranks, so each loss is multiplied by
  the number of ranks; it would divide by a fixed number of accumulation steps, which is set to 1,
  and the boundary of a step is what the caller says is its last micro-batch.
- The learning rate is written before every update; there is no DeepSpeed scheduler.
- bf16 keeps fp32 masters and accumulates in fp32. The masters start from the fp32 weights, where
  DeepSpeed by itself starts them from weights already rounded to bf16.
- A step whose loss or gradient is not finite is skipped by all ranks together, and counted.
"""

import contextlib
import gc
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.runtime import zero
from stages.runtime.distributed import Rank, share_patience
from stages.runtime.divergence import DivergedError, SkippedSteps
from stages.runtime.fragments import (
    MASTER,
    MOMENTS,
    captured,
    fragments_of,
    num_updates,
    prepared_state,
)
from stages.runtime.modules import (
    adamw,
    fp32_weights,
    materialized,
    on_meta,
    set_activation_checkpointing,
    to_bf16,
)
from stages.runtime.schedules import Schedule
from stages.runtime.settings import (
    EngineSettings,
    OptimizerSettings,
    StepStats,
    deepspeed_config,
    effective_stage,
)
from stages.runtime.tensor_files import PieceReader, piece_name

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
    """Steps taken over all resumed runs, the skipped ones included: the schedule's clock."""
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
        self.last_step = StepStats(0.0, 0.0, 0)
        self._schedule = schedule
        self._rank = rank
        self._clipping = optimizer.gradient_clipping
        self._stage = effective_stage(settings, rank)
        if self._stage == 3 or rank.device.type == "cuda":
            gc.collect()  # DeepSpeed's engines hold themselves, and there is no room for them
        self._skipped = SkippedSteps(settings, rank)
        set_activation_checkpointing(module, settings.activation_checkpointing)
        self._blueprint = on_meta(module) if self._stage == 3 else None
        is_bf16 = settings.precision == "bf16"
        exact = fp32_weights(module) if is_bf16 and rank.is_main else {}
        self._fused = rank.device.type == "cuda"
        self._adamw = adamw(module, optimizer, settings.adam, schedule(0), self._fused)
        config = deepspeed_config(settings, self._stage, optimizer.gradient_clipping, module)
        self._deepspeed = zero.initialize(module, config, self._adamw)
        share_patience()
        weakref.finalize(self, zero.free, self._deepspeed).atexit = False
        self.module = self._deepspeed.module
        self._fragments = fragments_of(self.module, self._deepspeed.optimizer, self._stage, rank)
        if is_bf16:
            self._set_masters(exact)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward. Under `torch.no_grad` it evaluates."""
        if self._stage > 0:
            self._deepspeed.optimizer.clear_backward_seen_flag()
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool, ids: Sequence[str] = ()) -> None:
        """Add this micro-batch's gradient; `last` says that `step` comes next.

        The loss is this micro-batch's share of the global loss: divided by the global batch's
        tokens or pairs, so that the shares of all micro-batches and ranks simply add up. `ids` are
        those of the micro-batch's rows, for the error that names them should training diverge.
        """
        engine = self._deepspeed
        self._skipped.watch(loss, ids)
        # A loss that is not finite may leave finite gradients, and other ranks see gradients only.
        finite = torch.isfinite(loss.detach())
        loss = loss * torch.where(finite, float(self._rank.world_size), math.nan)
        engine.set_gradient_accumulation_boundary(last)
        if self._stage > 0:
            # What engine.forward hooks to tensors it finds in the output, hooked to the loss:
            # so it runs once per backward, whatever the output is made of.
            loss.register_hook(lambda gradient: engine._backward_prologue())
        engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> StepStats:
        """Clip, update the weights with the schedule's learning rate, forget the gradients.

        When the loss or the gradient is not finite the weights stay as they are, on all ranks.
        Raises DivergedError, with the ids of the rows, when that happened too often.
        """
        learning_rate = self._schedule(self.num_steps)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        norm = self._update_replicated() if self._stage == 0 else self._update_sharded()
        self._skipped.judge(self.num_steps, norm)
        self.num_steps += 1
        self.last_step = StepStats(learning_rate, norm, self._skipped.total)
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

        Optimizer state stays: this is for starting weights, `restore` is for resuming.
        """
        self._set_masters(state)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """The unsharded module to generate with, on every rank, with the weights of now.

        Up to ZeRO-2 that is the trained module itself; with ZeRO-3 a second one, into which the
        weights are gathered once. It is freed after the block, if nobody keeps it: beside the
        update of a large model there is no room for it. All ranks enter.
        """
        if self._blueprint is None:
            yield self.module
            return
        live = dict(self.module.named_parameters(remove_duplicate=False))
        whole = materialized(self._blueprint, live)
        targets = dict(whole.named_parameters())
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                with zero.gathered(parameter):
                    targets[name].copy_(parameter)
            for name, buffer in self.module.named_buffers():
                whole.get_buffer(name).copy_(buffer)
        yield whole

    def pieces(self) -> dict[str, Tensor]:
        """This rank's share of fp32 weights and optimizer state: flat views, valid until `step`.

        The shares of all ranks together hold every element once; each is named after the elements
        that it holds, so that `restore` takes them at any number of ranks and any ZeRO stage.
        """
        mine = self._fragments
        if self._stage == 0:
            mine = [fragment.share(self._rank) for fragment in mine]
        return {
            piece_name(kind, fragment.name, fragment.start): values
            for kind, fragment, values in captured(mine, self._adamw)
            if fragment.length > 0
        }

    def counters(self) -> dict[str, int]:
        """What `restore` needs beside the pieces, as JSON; the same on every rank."""
        updates = num_updates(self._adamw)
        return {"num_steps": self.num_steps, "num_updates": updates} | self._skipped.state()

    @torch.no_grad()
    def restore(self, saved: PieceReader, counters: Mapping[str, int]) -> None:
        """Continue exactly where `pieces` and `counters` were taken. All ranks call."""
        updates = counters["num_updates"]
        for owner in {id(f.owner): f.owner for f in self._fragments}.values():
            state = prepared_state(owner, updates, self._fused) if updates else {}
            self._adamw.state[owner] = dict(state)
        for fragment in self._fragments:
            state = self._adamw.state[fragment.owner]
            saved.read(MASTER, fragment.name, fragment.start, fragment.of(fragment.owner))
            for moment in MOMENTS if updates else ():
                saved.read(moment, fragment.name, fragment.start, fragment.of(state[moment]))
        zero.publish_masters(self._deepspeed.optimizer, self._stage)
        self.num_steps = counters["num_steps"]
        self._skipped.restore(counters)

    def _update_replicated(self) -> float:
        norm = nn.utils.clip_grad_norm_(
            (p for group in self._adamw.param_groups for p in group["params"]),
            self._clipping or math.inf,
        ).item()
        if math.isfinite(norm):
            self._deepspeed.step()
        else:
            self._adamw.zero_grad()
        return norm

    def _update_sharded(self) -> float:
        self._deepspeed.step()
        if self._deepspeed.optimizer.overflow:  # the step was skipped, its norm is an older one's
            return math.nan
        return float(self._deepspeed.get_global_grad_norm())

    def _set_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Set parameters and fp32 masters from full tensors by name, read on rank 0 only."""
        for name, parameter in self.module.named_parameters():
            full = self._from_main(weights.get(name), zero.full_shape(parameter))
            if self._stage == 0 or not parameter.requires_grad:
                with torch.no_grad(), zero.gathered(parameter, modified=True):
                    parameter.copy_(full)
            else:
                zero.set_full_master(parameter, full)
        zero.publish_masters(self._deepspeed.optimizer, self._stage)

    def _full_value(self, value: Tensor) -> Tensor:
        """A parameter's exact weights, gathered from the ranks that hold them."""
        if self._stage == 0 or not value.requires_grad:
            with zero.gathered(value):
                return value.detach().clone() if hasattr(value, "ds_id") else value
        return zero.full_master(value)

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
            deepspeed = zero.initialize(module, config, None)
            weakref.finalize(self, zero.free, deepspeed).atexit = False
            self.module = deepspeed.module
        else:
            module.to(rank.device)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, in evaluation mode and without gradients."""
        return self.module(*args, **kwargs)


def frozen(module: nn.Module, settings: EngineSettings, rank: Rank) -> Frozen:
    """Freeze a module for evaluation: whole on every rank, sharded with ZeRO-3. All ranks call."""
    return Frozen(module, settings, rank)
