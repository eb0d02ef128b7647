"""Writing so that a kill or a full disk leaves either the old file or the new one, never half."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_contracts.errors import UserError

_AGAIN = "and run the same command again: what is finished is reused"
_REMEDIES = {
    errno.ENOSPC: f"Free space on that disk or choose a home on another, {_AGAIN}",
    errno.EDQUOT: f"Your quota is used up: free space or ask for more, {_AGAIN}",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f) and run it again",
    errno.EACCES: "Give yourself the permission to read and write there",
    errno.EPERM: "Give yourself the permission to read and write there",
    errno.EROFS: "Choose a place that is not mounted read-only",
    errno.ENOENT: "Check the path",
    errno.EIO: "The disk reports a fault: check it, then bring the file back from a copy",
}


def disk_error(action: str, path: Path, error: OSError) -> UserError:
    """The paragraph for an operating-system error: what could not be done, to which file."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno == errno.ENOSPC:
        reason += f" ({disk_space(path)})"
    remedy = _REMEDIES.get(error.errno or 0, "Check that disk and the file's permissions")
    return UserError(f"Cannot {action} {path}: {reason}", remedy)


def disk_full(action: str, path: Path) -> UserError:
    """The same paragraph where a library or a server met the full disk and raised its own error."""
    return disk_error(action, path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is, or comes from, a full disk or a used-up quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors, pyarrow and SQLite report it in their own exceptions, by these words
    words = (os.strerror(errno.ENOSPC), "database or disk is full")
    if any(word in str(error) for word in words):
        return True
    origin = error.__cause__ or error.__context__
    return origin is not None and is_disk_full(origin)


def disk_space(path: Path) -> str:
    """Free and total bytes of the file system that a path is, or would be, on."""
    usage = shutil.disk_usage(existing(path))
    return f"{_size(usage.free)} of {_size(usage.total)} free on {mount_point(path)}"


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def mount_point(path: Path) -> Path:
    """Where the file system of a path begins."""
    path = existing(path).resolve()
    return next(p for p in (path, *path.parents) if p.is_mount())


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` only when the block ends well, flushed to the disk first.

    Raises:
        UserError: the disk is full, read-only, or out of reach; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename and Path(error.filename) not in (temporary, *temporary.parents):
            raise  # about another file, one the block was reading
        raise disk_error("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file's content in one step that survives a power cut."""
    with replacing(path) as file:
        file.write(content)


def sync_file(path: Path) -> None:
    """Flush a file that someone else wrote."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: a rename is only durable once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
