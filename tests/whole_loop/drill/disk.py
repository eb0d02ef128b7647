"""A disk for the home that can be filled up without filling up the machine's."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drill.row import NotHere

_SIZE = "500m"
_TRIES = 100


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """The path for a home: on a tmpfs of its own where one may be mounted, else in the folder."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "rlhf-drill", str(place)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield place / "home"
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def filled(home: Path, leave_bytes: int) -> Iterator[None]:
    """The home's disk, full but for so many bytes; there is room again after the block.

    Raises NotHere when the disk is not the home's own.
    """
    place = home.parent
    if not place.is_mount():
        raise NotHere("a tmpfs cannot be mounted here")
    filler = place / "filler"
    try:
        with filler.open("wb") as file:
            for _ in range(_TRIES):
                size = shutil.disk_usage(place).free - leave_bytes
                if size <= 0:
                    break
                with suppress(OSError):  # who writes there meanwhile has taken some of it
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        yield
    finally:
        filler.unlink(missing_ok=True)
