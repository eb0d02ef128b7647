"""What the kernels do on a GPU: are they right in bf16, and how fast are they?

    python3 -m benchmarks.gpu --output gpu.json        # or: make gpu

One process, one GPU, a few minutes. Needs PyTorch 2.11 or newer with CUDA, Triton and jaxtyping,
and nothing else of this project's environment. Prints tables and writes all figures as JSON; ends
with 1 if a kernel is wrong and with 2 if there is no GPU.

`--device cpu --size tiny` runs every line of it anywhere, and its figures mean nothing.
"""

import argparse
import importlib.util
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import gpu_parity, gpu_speed
from kernels.model import ModelConfig

SEVEN_B_LAYERS = ModelConfig(
    vocab_size=32_000, dim=4096, n_layers=4, n_heads=32, n_kv_heads=32, ffn_hidden=11_008
)
"""Four of Llama 2 7B's 32 layers, with its vocabulary: a billion parameters, 10 GB to train."""

SIZES = {
    "7b-layers": gpu_speed.Size(
        SEVEN_B_LAYERS,
        num_sequences=4,
        num_prompts=128,
        num_prompt_tokens=512,
        num_new_tokens=256,
        num_repeats=7,
    ),
    "tiny": gpu_speed.Size(
        ModelConfig(128, 32, 2, 4, 2, 48, max_seq_len=64),
        num_sequences=2,
        num_prompts=3,
        num_prompt_tokens=8,
        num_new_tokens=4,
        num_repeats=1,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; the exit code."""
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "This benchmark needs an NVIDIA GPU and PyTorch 2.11 or newer built for CUDA, with "
            "Triton: run it there with `python3 -m benchmarks.gpu`.",
            file=sys.stderr,
        )
        return 2
    device, size = torch.device(options.device), SIZES[options.size]
    facts = machine(device)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    tables = {
        "parity": gpu_parity.run(device, size.model),
        "training": list(gpu_speed.training(device, size)),
        "generation": list(gpu_speed.generation(device, size)),
    }
    for name, rows in tables.items():
        print_rows(name, rows)
    results = {"machine": facts, "size": asdict(size)}
    results |= {name: [asdict(row) for row in rows] for name, rows in tables.items()}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{gpu_speed.CONVENTION}\nAll figures are in {options.output}.")
    return 0 if all(check.holds for check in tables["parity"]) else 1


def machine(device: torch.device) -> dict[str, Any]:
    """The GPU, the libraries, and which of PyTorch's newer kernels are there."""
    facts: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    facts["triton"] = None
    if importlib.util.find_spec("triton") is not None:
        import triton

        facts["triton"] = triton.__version__
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = properties.name
        facts["memory_gib"] = properties.total_memory / 2**30
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        from torch.nn.attention.varlen import varlen_attn

        facts["varlen_attn_gqa"] = "enable_gqa" in inspect.signature(varlen_attn).parameters
    facts["linear_cross_entropy"] = hasattr(F, "linear_cross_entropy")
    return facts


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=SIZES, default="7b-layers")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="where the JSON goes")
    return parser.parse_args(arguments)


def print_rows(title: str, rows: Sequence[Any]) -> None:
    """A table of dataclasses of one kind: a line each, floats to four digits."""
    table = [list(asdict(row)) for row in rows[:1]]
    table += [[_text(value) for value in asdict(row).values()] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    print(f"\n{title}")
    for line in table:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
