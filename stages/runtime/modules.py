"""What is done to a module before and beside its training: groups, flags, copies."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.runtime.settings import AdamSettings, OptimizerSettings


def adamw(
    module: nn.Module,
    settings: OptimizerSettings,
    constants: AdamSettings,
    learning_rate: float,
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; vectors (norms) are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(constants.beta1, constants.beta2),
        eps=constants.epsilon,
        fused=fused,
    )


def fp32_weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights in fp32, by parameter name."""
    return {name: p.detach().float().clone() for name, p in module.named_parameters()}


def to_bf16(module: nn.Module) -> None:
    """Round the weights, and not the buffers: a rotation table is complex, or needs its digits."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def set_activation_checkpointing(module: nn.Module, enabled: bool) -> None:
    """Tell every part that knows the flag `activation_checkpointing` (kernels' Llama does)."""
    for part in module.modules():
        if hasattr(part, "activation_checkpointing"):
            setattr(part, "activation_checkpointing", enabled)  # noqa: B010 - no declared attribute


def on_meta(module: nn.Module) -> nn.Module:
    """The module's structure without its weights."""
    hollow: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()
    }
    return copy.deepcopy(module, hollow)


def materialized(blueprint: nn.Module, live: Mapping[str, Tensor]) -> nn.Module:
    """A module to evaluate with memory for the weights, of the trained parameters' types."""
    module = copy.deepcopy(blueprint)
    twins: dict[int, nn.Parameter] = {}  # one for each parameter: tied weights stay tied
    for name, parameter in blueprint.named_parameters(remove_duplicate=False):
        if id(parameter) not in twins:
            full = torch.empty(parameter.shape, dtype=live[name].dtype, device=live[name].device)
            twins[id(parameter)] = nn.Parameter(full, requires_grad=False)
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner).register_parameter(attribute, twins[id(parameter)])
    return module.to(next(iter(live.values())).device).eval()
