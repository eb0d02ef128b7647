"""Writing so that a kill or a full disk leaves either the old file or the new one, never half."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_contracts.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "Free space on that disk, or move the store elsewhere, and run it again",
    errno.EDQUOT: "Your quota is used up: free space or ask for more, and run it again",
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
    remedy = _REMEDIES.get(error.errno or 0, "Check that disk and the file's permissions")
    return UserError(f"Cannot {action} {path}: {reason}", remedy)


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
