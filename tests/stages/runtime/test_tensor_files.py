"""Pieces of flat tensors: safetensors that anyone reads, and any range from any cut."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_contracts.artifacts import hash_file
from stages.runtime.tensor_files import PieceReader, piece_name, write_pieces

WEIGHT = torch.arange(100, dtype=torch.float32)


def cut(folder: Path, *cuts: int) -> list[Path]:
    """One file for every piece of WEIGHT between the cuts."""
    paths = []
    for start, end in zip((0, *cuts), (*cuts, 100), strict=True):
        paths.append(folder / f"{start}.safetensors")
        write_pieces(paths[-1], {piece_name("master", "a.weight", start): WEIGHT[start:end]})
    return paths


def test_the_file_is_a_safetensors_file_and_the_digest_its_own(tmp_path: Path) -> None:
    pieces = {
        "master/x@0": torch.rand(3),
        "exp_avg/a longer name@17": torch.rand(5).bfloat16(),
        "exp_avg_sq/empty@0": torch.rand(0),
    }
    path = tmp_path / "rank.safetensors"
    assert write_pieces(path, pieces) == hash_file(path)
    found = load_file(path)
    assert found.keys() == pieces.keys()
    assert all(torch.equal(found[name], pieces[name]) for name in pieces)
    assert all(found[name].dtype == pieces[name].dtype for name in pieces)


@pytest.mark.parametrize("cuts", [(), (50,), (1, 2, 99), (33, 66)], ids=str)
@pytest.mark.parametrize(("start", "length"), [(0, 100), (0, 1), (99, 1), (20, 60), (50, 50)])
def test_any_range_is_read_from_any_cut(
    tmp_path: Path, cuts: tuple[int, ...], start: int, length: int
) -> None:
    into = torch.full((length,), -1.0)
    with PieceReader(cut(tmp_path, *cuts)) as saved:
        saved.read("master", "a.weight", start, into)
    assert torch.equal(into, WEIGHT[start : start + length])


def test_what_no_piece_holds_is_an_error(tmp_path: Path) -> None:
    first, second, third = cut(tmp_path, 30, 60)
    with PieceReader([first, third]) as saved:
        with pytest.raises(KeyError, match="from element 30 on"):
            saved.read("master", "a.weight", 0, torch.empty(100))
        with pytest.raises(KeyError, match="from element 40 on"):
            saved.read("master", "a.weight", 40, torch.empty(10))
        with pytest.raises(KeyError, match=r"exp_avg/a\.weight"):
            saved.read("exp_avg", "a.weight", 0, torch.empty(1))
    with PieceReader([second]) as saved, pytest.raises(KeyError, match="from element 0 on"):
        saved.read("master", "a.weight", 0, torch.empty(1))


def test_a_full_device_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rank.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_pieces(tmp_path / "rank.safetensors", {"master/x@0": torch.rand(3)})
