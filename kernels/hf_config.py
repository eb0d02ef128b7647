"""Hugging Face's `config.json` for Llama models, read and written.

What this model does not compute is refused by name rather than ignored.
"""

import json
from pathlib import Path
from typing import Any, Literal

from kernels.model import INIT_STD, ModelConfig

CONFIG_FILE = "config.json"

StoredType = Literal["float32", "bfloat16", "float16"]


def load_config(folder: Path) -> ModelConfig:
    """Read a folder's architecture; ValueError where it is not one that this model computes."""
    path = folder / CONFIG_FILE
    found = read_json(path)
    _refuse_unsupported(path, found)
    rope = found.get("rope_parameters") or {}
    try:
        return ModelConfig(
            vocab_size=found["vocab_size"],
            dim=found["hidden_size"],
            n_layers=found["num_hidden_layers"],
            n_heads=found["num_attention_heads"],
            n_kv_heads=found.get("num_key_value_heads") or found["num_attention_heads"],
            ffn_hidden=found["intermediate_size"],
            # Where a key is absent, transformers' own defaults hold, not ours.
            max_seq_len=found.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta") or found.get("rope_theta") or 10_000.0),
            norm_eps=found.get("rms_norm_eps", 1e-6),
            tie_embeddings=bool(found.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}. Give the folder of a Llama model.") from error


def _refuse_unsupported(path: Path, found: dict[str, Any]) -> None:
    # A Llama 3.1 has its scaling in either place, and in older files its kind is called "type".
    rope = (found.get("rope_scaling") or {}) | (found.get("rope_parameters") or {})
    heads, dim = found.get("num_attention_heads"), found.get("hidden_size")
    head_dim = dim // heads if heads and dim else None
    supported: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "model_type": (found.get("model_type"), ("llama",)),
        "hidden_act": (found.get("hidden_act", "silu"), ("silu", "swish")),
        "rope type": (rope.get("rope_type", rope.get("type", "default")), ("default",)),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), (1.0,)),
        "attention_bias": (bool(found.get("attention_bias")), (False,)),
        "mlp_bias": (bool(found.get("mlp_bias")), (False,)),
        "quantization_config": (found.get("quantization_config"), (None,)),
        "head_dim": (found.get("head_dim") or head_dim, (head_dim,)),
    }
    for name, (value, known) in supported.items():
        if value not in known:
            raise ValueError(
                f"{path} asks for {name} {value!r}, and this model computes only {known[0]!r}. "
                "Give a checkpoint of a Llama, Llama 2 or Llama 3.0 architecture."
            )


def describe(config: ModelConfig, dtype: StoredType) -> dict[str, Any]:
    """The architecture in transformers' words, its newer names and its older ones."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": INIT_STD,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError where there is none to read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as JSON ({error}). Give a folder in Hugging Face layout."
        ) from error
