"""Hugging Face's Llama layout, in and out: `config.json` and safetensors files.

A folder written here is loaded by transformers, vLLM and lm-eval as it is, and theirs is loaded
here. Two things differ inside. They rotate the two halves of a head against each other, we rotate
neighbours (see `rope`), so the rows of query and key projections are reordered on the way; and
their separate query, key and value (gate and up) matrices are row ranges of one matrix of ours.

Everything is fp32 in memory. Errors are ValueError, with the file and the tensor in their text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kernels.heads import RewardModel, ScoreHead
from kernels.hf_config import CONFIG_FILE, StoredType, describe, load_config, read_json, write_json
from kernels.model import CausalLM, Llama, ModelConfig

GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_SHARD_BYTES = 5_000_000_000
"""Size above which weights are split over files, so that no reader must hold a 70B in one piece."""

_STORED_TYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Slot:
    """Where a tensor of theirs lies in our weights."""

    parameter: str
    shape: tuple[int, ...]
    first_row: int = 0
    head_dim: int | None = None
    """Set where the rows are those of rotated heads."""

    def of(self, parameter: Tensor) -> Tensor:
        """The rows of our parameter that hold it, as a view."""
        return parameter[self.first_row : self.first_row + self.shape[0]]


# ---- saving


def save_causal(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    dtype: StoredType = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the weights of a `CausalLM` (its state dict) as a `LlamaForCausalLM` folder.

    Raises ValueError for missing, misshapen or non-finite weights.
    """
    ids = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    _save_weights(folder, _slots(config, "lm_head"), state, dtype, max_shard_bytes)
    write_json(folder / GENERATION_FILE, ids)
    write_json(
        folder / CONFIG_FILE,
        {"architectures": ["LlamaForCausalLM"]} | ids | describe(config, dtype),
    )


def save_reward(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    dtype: StoredType = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the weights of a `RewardModel` or `ValueModel` as a `LlamaForSequenceClassification`.

    Its single label is the score. Raises ValueError as `save_causal` does.
    """
    ids = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    labels = {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    _save_weights(folder, _slots(config, "score"), state, dtype, max_shard_bytes)
    write_json(
        folder / CONFIG_FILE,
        {"architectures": ["LlamaForSequenceClassification"]}
        | ids
        | labels
        | describe(config, dtype),
    )


def _save_weights(
    folder: Path,
    slots: dict[str, Slot],
    state: dict[str, Tensor],
    dtype: StoredType,
    max_shard_bytes: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored_type = _STORED_TYPES[dtype]
    shards = _split(slots, stored_type.itemsize, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = (
            WEIGHTS_FILE
            if len(shards) == 1
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        tensors = {name: _export(name, slots[name], state, stored_type) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        size = sum(_num_elements(slot) for slot in slots.values()) * stored_type.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / INDEX_FILE, index)


def _split(slots: dict[str, Slot], item_bytes: int, max_bytes: int) -> list[list[str]]:
    """Names of the tensors of each shard, in order, a shard's tensors within max_bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, slot in slots.items():
        num_bytes = _num_elements(slot) * item_bytes
        if shards[-1] and size + num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


def _export(name: str, slot: Slot, state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    weight = state.get(slot.parameter)
    if weight is None:
        raise ValueError(
            f"The weights to save lack {slot.parameter}. Give the model's whole state dict."
        )
    rows = slot.of(weight.detach())
    if rows.shape != slot.shape:
        raise ValueError(
            f"{slot.parameter} of shape {tuple(weight.shape)} does not hold {name} "
            f"{slot.shape}. Gather sharded weights first, and save with the model's own config."
        )
    if slot.head_dim is not None:
        rows = _halves_from_pairs(rows, slot.head_dim)
    # A copy: safetensors takes no views of one storage, which the parts of a fused matrix are.
    tensor = rows.to("cpu", dtype, copy=True).contiguous()
    _check_finite(tensor, f"{slot.parameter} (to be saved as {name} in {dtype})")
    return tensor


# ---- loading


def load_causal(folder: Path) -> CausalLM:
    """Read a `LlamaForCausalLM` folder, in one file or in shards, stored in fp32, bf16 or fp16.

    Raises ValueError for a configuration that this model does not compute, and for tensors that
    are missing, unexpected, misshapen, of another type, or not finite.
    """
    config = load_config(folder)
    model = CausalLM(config, None)
    _load_weights(folder, model, _slots(config, "lm_head"))
    return model


def load_reward(folder: Path) -> RewardModel:
    """Read a `LlamaForSequenceClassification` folder with one label. Errors: see `load_causal`."""
    config = load_config(folder)
    model = RewardModel(Llama(config, None), ScoreHead(config, None))
    _load_weights(folder, model, _slots(config, "score"))
    return model


def _load_weights(folder: Path, model: nn.Module, slots: dict[str, Slot]) -> None:
    """Fill the model's parameters from the folder's files, tensor by tensor."""
    files = _tensor_files(folder)
    _check_names(folder, files, slots)
    parameters = dict(model.named_parameters())
    for path in sorted(set(files.values())):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                if name in slots:
                    slot = slots[name]
                    _import(path, name, file, slot, slot.of(parameters[slot.parameter].data))
    if "lm_head.weight" in files and "lm_head.weight" not in slots:
        _check_tied(files["lm_head.weight"], parameters["backbone.embedding.weight"])


def _import(path: Path, name: str, file: Any, slot: Slot, target: Tensor) -> None:
    shape = tuple(file.get_slice(name).get_shape())
    if shape != slot.shape:
        raise ValueError(
            f"{path}: tensor {name} has shape {shape}, {CONFIG_FILE} asks for {slot.shape}. "
            f"Give the {CONFIG_FILE} that was saved with these weights."
        )
    tensor = file.get_tensor(name)
    if tensor.dtype not in _STORED_TYPES.values():
        raise ValueError(
            f"{path}: tensor {name} is stored as {tensor.dtype}. "
            "Save the model in fp32, bf16 or fp16, not quantised."
        )
    _check_finite(tensor, f"{path}: tensor {name}")
    if slot.head_dim is not None:
        tensor = _pairs_from_halves(tensor, slot.head_dim)
    target.copy_(tensor)


def _check_tied(path: Path, embedding: Tensor) -> None:
    with _open(path) as file:
        head = file.get_tensor("lm_head.weight")
    if not torch.equal(head.to(embedding.dtype), embedding):
        raise ValueError(
            f"{path}: lm_head.weight differs from the embedding although {CONFIG_FILE} ties them. "
            "Set tie_word_embeddings to false to use it."
        )


def _check_names(folder: Path, files: dict[str, Path], slots: dict[str, Slot]) -> None:
    missing = [name for name in slots if name not in files]
    # Files of an old transformers hold the rotary frequencies, which follow from the config, and
    # some hold a tied output layer a second time.
    unexpected = [
        name
        for name in files
        if name not in slots
        and not name.endswith("rotary_emb.inv_freq")
        and not (name == "lm_head.weight" and "score.weight" not in slots)
    ]
    kind = "reward" if "score.weight" in slots else "causal language"
    remedy = f"Give the whole checkpoint of a {kind} model that its {CONFIG_FILE} describes."
    if missing:
        raise ValueError(f"{folder} lacks tensors: {_some(missing)}. {remedy}")
    if unexpected:
        path = files[unexpected[0]]
        raise ValueError(f"{path} has unexpected tensors: {_some(unexpected)}. {remedy}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if index.exists():
        weight_map: dict[str, str] = read_json(index).get("weight_map", {})
        paths = [folder / file for file in sorted(set(weight_map.values()))]
    elif single.exists():
        paths = [single]
    else:
        raise ValueError(
            f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}. "
            "Give a model saved with safetensors: save_pretrained of transformers writes it."
        )
    files: dict[str, Path] = {}
    for path in paths:
        with _open(path) as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). Copy or download it again."
        ) from error


# ---- the correspondence


def _slots(config: ModelConfig, head: Literal["lm_head", "score"]) -> dict[str, Slot]:
    """Every tensor of theirs, in the order of the layers, with its place in our weights."""
    vocab, dim = config.vocab_size, config.dim
    slots = {"model.embed_tokens.weight": Slot("backbone.embedding.weight", (vocab, dim))}
    for i in range(config.n_layers):
        layer = _layer_slots(config, f"backbone.layers.{i}")
        slots |= {f"model.layers.{i}.{name}.weight": slot for name, slot in layer.items()}
    slots["model.norm.weight"] = Slot("backbone.norm.weight", (dim,))
    if head == "score":
        slots["score.weight"] = Slot("score.weight", (1, dim))
    elif not config.tie_embeddings:
        slots["lm_head.weight"] = Slot("lm_head.weight", (vocab, dim))
    return slots


def _layer_slots(config: ModelConfig, ours: str) -> dict[str, Slot]:
    dim, ffn, head_dim = config.dim, config.ffn_hidden, config.head_dim
    kv_dim = config.n_kv_heads * head_dim
    qkv, gate_up = f"{ours}.attention.qkv.weight", f"{ours}.feed_forward.gate_up.weight"
    return {
        "input_layernorm": Slot(f"{ours}.attention_norm.weight", (dim,)),
        "self_attn.q_proj": Slot(qkv, (dim, dim), 0, head_dim),
        "self_attn.k_proj": Slot(qkv, (kv_dim, dim), dim, head_dim),
        "self_attn.v_proj": Slot(qkv, (kv_dim, dim), dim + kv_dim),
        "self_attn.o_proj": Slot(f"{ours}.attention.output.weight", (dim, dim)),
        "post_attention_layernorm": Slot(f"{ours}.feed_forward_norm.weight", (dim,)),
        "mlp.gate_proj": Slot(gate_up, (ffn, dim)),
        "mlp.up_proj": Slot(gate_up, (ffn, dim), ffn),
        "mlp.down_proj": Slot(f"{ours}.feed_forward.down.weight", (dim, ffn)),
    }


def _pairs_from_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Each head's rows 0, D/2, 1, D/2+1, …: what they rotate as halves, we rotate as neighbours."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _halves_from_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse of `_pairs_from_halves`."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _num_elements(slot: Slot) -> int:
    return torch.Size(slot.shape).numel()


def _check_finite(tensor: Tensor, what: str) -> None:
    low, high = tensor.aminmax()  # passes NaN on, and makes no copy as isfinite would
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            f"{what} holds NaN or infinite values. Go back to a checkpoint from before the "
            "training diverged, or copy the file again."
        )
