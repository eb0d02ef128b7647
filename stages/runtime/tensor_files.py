"""Pieces of flat tensors in safetensors files, written in one pass, read a range at a time.

A piece is named "exp_avg/layers.0.attention.query.weight@4096": what it is, of which tensor, and
its first element there. The files' own headers are the index, and nothing is ever unpickled.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def piece_name(kind: str, tensor: str, start: int) -> str:
    """The name under which elements of a flat tensor are stored, from `start` on."""
    return f"{kind}/{tensor}@{start}"


def write_pieces(path: Path, pieces: Mapping[str, Tensor]) -> str:
    """Write flat CPU tensors and flush them to the disk; the file's sha256 in hex.

    safetensors' own writer first copies every tensor, and would have to be read again for the
    digest.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (_header(pieces), *map(_bytes_of, pieces.values())):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _header(pieces: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, piece in pieces.items():
        begin, end = end, end + piece.nbytes
        entries[name] = {
            "dtype": _TYPES[piece.dtype],
            "shape": list(piece.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _bytes_of(piece: Tensor) -> memoryview:
    """The tensor's memory itself, no copy."""
    assert piece.is_contiguous(), "a piece is flat"
    return piece.view(torch.uint8).numpy().data


class _Place(NamedTuple):
    start: int
    length: int
    file: Any
    key: str


class PieceReader:
    """All pieces in a few files, wherever the writers cut. To be used in a `with` block."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._open_files = ExitStack()
        self._places: dict[str, list[_Place]] = {}
        for path in paths:
            file = self._open_files.enter_context(safe_open(path, framework="pt", device="cpu"))
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensor, _, start = key.rpartition("@")
                (length,) = file.get_slice(key).get_shape()
                self._places.setdefault(tensor, []).append(_Place(int(start), length, file, key))
        for places in self._places.values():
            places.sort(key=lambda place: place.start)

    def __enter__(self) -> "PieceReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open_files.close()

    def read(self, kind: str, tensor: str, start: int, into: Tensor) -> None:
        """Fill a flat tensor with the elements from `start` on, from however many pieces.

        Raises KeyError when no piece holds some of them.
        """
        places = self._places[f"{kind}/{tensor}"]
        done = 0
        index = bisect_right(places, start, key=lambda place: place.start) - 1
        while done < len(into):
            place = places[index] if 0 <= index < len(places) else None
            first = start + done - place.start if place else 0
            if place is None or not 0 <= first < place.length:
                raise KeyError(f"{kind}/{tensor} from element {start + done} on")
            count = min(len(into) - done, place.length - first)
            into[done : done + count].copy_(place.file.get_slice(place.key)[first : first + count])
            done += count
            index += 1
