"""What two ranks allocate at every ZeRO stage: torchrun -m capacity_ranks FOLDER, rank 0 writes."""

import json
import sys
import warnings
from pathlib import Path

import torch
from allocated import PeakBytes, live_bytes, nothing_before

from kernels.attention import Documents
from kernels.model import CausalLM, ModelConfig
from stages.runtime import settings
from stages.runtime.distributed import Rank, leave_process_group, process_group
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings, frozen
from stages.runtime.schedules import constant

CONFIG = ModelConfig(
    vocab_size=512, dim=128, n_layers=4, n_heads=8, n_kv_heads=2, ffn_hidden=256, max_seq_len=64
)
BUCKET_ELEMENTS = 2_000
"""Small against the 0.7M parameters, as 50M are against billions."""
CASES = {
    f"{precision}-{zero}{'-offload' * offload}": {
        "precision": precision,
        "zero_stage": zero,
        "offload_optimizer": offload,
        "activation_checkpointing": True,
    }
    for precision, zero, offload in [
        *(("bf16", zero, False) for zero in (1, 2, 3)),
        *(("fp32", zero, False) for zero in (0, 1, 2, 3)),
        *(("bf16", zero, True) for zero in (2, 3)),
    ]
}


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    settings._PERSISTENT_ELEMENTS = 0  # or ZeRO-3 would keep all of the small model everywhere
    settings.BUCKET_ELEMENTS = BUCKET_ELEMENTS
    rank = process_group()
    with nothing_before():
        found = {name: trained(rank, values) for name, values in CASES.items()}
        found["frozen"] = {str(zero): frozen_bytes(rank, zero) for zero in (2, 3)}
    if rank.is_main:
        (folder / "allocated.json").write_text(json.dumps(found))
    leave_process_group()


def trained(rank: Rank, values: dict[str, object]) -> dict[str, int]:
    """Bytes between two steps, and at the peak of the second step's passes."""
    before = live_bytes()
    model = CausalLM(CONFIG, torch.Generator().manual_seed(0))
    optimizer = OptimizerSettings(learning_rate=1e-3)
    chosen = EngineSettings.model_validate(values)
    engine = Engine(model, optimizer, constant(1e-3), chosen, rank)
    del model
    micro_step(engine, last=True)
    engine.step()
    at_rest = live_bytes() - before
    with PeakBytes() as measured:
        micro_step(engine, last=False)
        micro_step(engine, last=True)
    engine.step()
    return {"at_rest": at_rest, "peak": measured.peak - before}


def micro_step(engine: Engine, last: bool) -> None:
    tokens = torch.arange(8)
    loss = engine(tokens, Documents.of([8]), torch.arange(7), tokens[1:])
    engine.backward(loss / 14, last=last)


def frozen_bytes(rank: Rank, zero: int) -> int:
    before = live_bytes()
    model = CausalLM(CONFIG, torch.Generator().manual_seed(0))
    values = {"zero_stage": zero, "precision": "bf16"}
    held = frozen(model, EngineSettings.model_validate(values), rank)
    del model
    num_bytes = live_bytes() - before
    del held
    return num_bytes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
