"""DeepSpeed as the engine uses it: the only importer of deepspeed, and that inside functions.

Importing it takes a second, and the command line's help must not wait for it. Nothing is compiled:
the optimizer is torch's own AdamW, also where its state is offloaded to the host.
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.runtime.modules import to_bf16
from stages.runtime.quiet import absent, known_warnings

_MASTERS = (
    "fp32_groups_flat_partition",  # ZeRO-1 in bf16
    "single_partition_of_fp32_groups",  # ZeRO-1 and 2
    "fp32_partitioned_groups_flat",  # ZeRO-3
)


def initialize(
    module: nn.Module, config: dict[str, Any], optimizer: torch.optim.Optimizer | None
) -> Any:
    """The DeepSpeed engine around a module."""
    deepspeed = _deepspeed()
    with contextlib.redirect_stdout(io.StringIO()), known_warnings():  # banners
        if config["zero_optimization"]["stage"] == 3:
            _shard(module, config)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if dist.get_world_size() == 1:
        # What shards gradients moves them to the masters in its reduction. ZeRO-1 in bf16 has done
        # so before, and would copy all of them to add up nothing.
        is_summed_before = hasattr(engine.optimizer, "get_grads_for_reduction")
        is_sharded = config["zero_optimization"]["stage"] > 0
        engine.enable_backward_allreduce = is_sharded and not is_summed_before
    return engine


def free(engine: Any) -> None:
    """Make DeepSpeed let go of an engine: its hooks, and ZeRO-3's list of the top modules of all
    there ever were, would keep weights and optimizer state for as long as the process."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    engine.destroy()
    FWD_MODULE_STACK[:] = [top for top in FWD_MODULE_STACK if top is not engine.module]


def masters(optimizer: Any) -> list[Tensor]:
    """The flat fp32 tensors, this rank's shards, that a ZeRO optimizer updates."""
    name = next(name for name in _MASTERS if hasattr(optimizer, name))
    return getattr(optimizer, name)


def publish_masters(optimizer: Any, stage: int) -> None:
    """Copy the fp32 masters to the weights that the module computes with, on every rank."""
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for i in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def full_master(parameter: Tensor) -> Tensor:
    """A trained, sharded parameter's exact fp32 weights, gathered from the ranks that hold them."""
    from deepspeed.utils import safe_get_full_fp32_param

    full = safe_get_full_fp32_param(parameter)
    assert full is not None, "every trained parameter has an fp32 master"
    return full.view(full_shape(parameter))


def set_full_master(parameter: Tensor, full: Tensor) -> None:
    """Set a trained, sharded parameter's fp32 weights; `publish_masters` comes after."""
    from deepspeed.utils import safe_set_full_fp32_param

    safe_set_full_fp32_param(parameter, full)


@contextlib.contextmanager
def gathered(parameter: Tensor, modified: bool = False) -> Iterator[None]:
    """The parameter in full inside the block, whether or not ZeRO-3 shards it."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0 if modified else None):
        yield


def full_shape(parameter: Tensor) -> torch.Size:
    """The shape in full; a sharded parameter's own is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)


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
    # No extension counts as available. At every first start it would build one for gloo, which does
    # without (27 s, needs g++); and even to see which could be built it runs a compiler.
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
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
