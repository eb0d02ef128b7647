"""Users' files as a recipe names them, and as a stage gets them: found, and known by digest.

A recipe is read without its files, so that a plan can say which of them are missing; until then
a file's digest is UNKNOWN.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_contracts.artifacts import hash_file
from data_contracts.base import Contract
from data_contracts.errors import UserError
from stages.importers.user_file import UserFile
from stages.pretrain import ExternalModel

UNKNOWN = "0" * 64
"""Digest of a file that nobody has looked at yet."""


class NoSources(Contract):
    """In place of ingest's settings, in a recipe that leaves the files to its user."""


def with_unknown_digests(values: Any) -> Any:
    """Raw recipe values in which every mapping with a path has a sha256."""
    if isinstance(values, Mapping):
        filled = {key: with_unknown_digests(value) for key, value in values.items()}
        return {"sha256": UNKNOWN, **filled} if filled.get("path") else filled
    if isinstance(values, list | tuple):
        return [with_unknown_digests(value) for value in values]
    return values


def on_disk(settings: Contract, folder: Path) -> Contract:
    """Settings with every file found and hashed; relative paths stand in `folder`.

    Raises UserError when a file is missing, or when the recipe names no sources at all.
    """
    if isinstance(settings, NoSources):
        raise UserError(
            "The recipe names no sources: documents to pretrain on, demonstrations, prompts and "
            "preferences are yours to supply",
            "Write a file with `extends: NAME` and `ingest: {sources: [...]}`, and pass it as "
            "--recipe",
        )
    missing = [path for path in _files(settings, folder) if not path.exists()]
    if missing:
        more = f" nor {', '.join(str(p) for p in missing[1:])}" if missing[1:] else ""
        raise UserError(
            f"There is no file {missing[0]}{more}", "Correct the paths in the recipe, or --data DIR"
        )
    found = _found(settings, folder)
    return settings if found is settings else type(settings).model_validate(found)


def _files(value: Any, folder: Path) -> Iterator[Path]:
    """Every file or folder that settings name."""
    if isinstance(value, UserFile | ExternalModel):
        yield _below(folder, value.path)
    elif isinstance(value, Contract):
        for field in _fields(value).values():
            yield from _files(field, folder)
    elif isinstance(value, tuple):
        for item in value:
            yield from _files(item, folder)


def _found(value: Any, folder: Path) -> Any:
    if isinstance(value, UserFile):
        fields = _fields(value) | {"path": _below(folder, value.path)}
        if value.sha256 == UNKNOWN:
            fields["sha256"] = _digest_of_file(fields["path"])
        return type(value).model_validate(fields)
    if isinstance(value, ExternalModel):
        path = _below(folder, value.path)
        return ExternalModel(path=path, digest=value.digest or _digest_of_folder(path))
    if isinstance(value, Contract):
        return type(value).model_validate(
            {name: _found(field, folder) for name, field in _fields(value).items()}
        )
    if isinstance(value, tuple):
        return tuple(_found(item, folder) for item in value)
    return value


def _fields(value: Contract) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).model_fields}


def _below(folder: Path, path: Path) -> Path:
    return (folder / path.expanduser()).absolute()


def _digest_of_file(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} is not a file", "Correct its path in the recipe")
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns)


def _digest_of_folder(folder: Path) -> str:
    files = sorted(p for p in folder.glob("**/*") if p.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"The model folder {folder} is empty", "Correct pretrain.init_from.path in the recipe"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{_digest_of_file(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _hashed(path: Path, size_bytes: int, modified_ns: int) -> str:
    """sha256 of a file; size and time are there so that a changed file is read again."""
    return hash_file(path)
