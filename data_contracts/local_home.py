"""A store's home in a folder of a local file system: renames are atomic, bytes are synced."""

import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from data_contracts.artifacts import Listing, digest_of, file_names, listing_bytes, listing_of
from data_contracts.belief import MISSING, HashMemo, difference, unbelievable
from data_contracts.durable import disk_error, sync_file, sync_folder, write_durably
from data_contracts.errors import StoreError
from data_contracts.homes import Usage

_ABANDONED_SECONDS = 7 * 86_400
"""Age at which a copy in progress is taken for one whose process was killed."""


class LocalHome:
    """A folder on a local (or shared POSIX) file system."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self.scratch = root
        self._objects = root / "objects"
        self._hashes = HashMemo()
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error("make the store", root, error) from error

    def read(self, name: str) -> bytes | None:
        """See Home."""
        path = self.scratch / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error("read", path, error) from error

    def write(self, name: str, content: bytes) -> None:
        """See Home."""
        write_durably(self.scratch / name, content)

    def names(self, folder: str) -> list[str]:
        """See Home."""
        path = self.scratch / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in path.iterdir() if entry.name[0] != ".")

    def put(self, folder: Path) -> str:
        """See Home. A folder below work/ is moved, any other is copied and stays its owner's."""
        try:
            return self._put(folder)
        except OSError as error:
            raise disk_error(f"publish {folder} into", self._objects, error) from error

    def fault(self, digest: str) -> str | None:
        """See Home."""
        folder = self._objects / digest
        content = self.read(f"objects/{digest}.json")
        if content is None or not folder.is_dir():
            return MISSING
        try:
            names = file_names(folder)
            return difference(digest, content, names, lambda name: self._hashes.of(folder / name))
        except StoreError as error:
            return f"corrupt: {error.problem}"
        except OSError as error:
            return f"unreadable: {os.strerror(error.errno or 0)}"

    def has(self, digest: str) -> bool:
        """See Home."""
        folder = self._objects / digest
        return folder.is_dir() and folder.with_suffix(".json").is_file()

    def fetch(self, digest: str) -> Path:
        """See Home."""
        fault = self.fault(digest)
        if fault:
            raise unbelievable(digest, self.url, fault)
        return self._objects / digest

    def usage(self, name: str) -> Usage:
        """See Home."""
        path = self.scratch / name
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        states = [file.stat() for file in files]
        newest = max((state.st_mtime for state in states), default=0.0)
        return Usage(sum(state.st_size for state in states), newest)

    def remove(self, name: str) -> None:
        """See Home. A folder is out of sight in one step, and removed after that."""
        path = self.scratch / name
        try:
            if path.is_dir():
                unwanted = self.incoming()
                os.rename(path, unwanted)
                shutil.rmtree(unwanted)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error("remove", path, error) from error

    def incoming(self) -> Path:
        """A fresh folder on the objects' own file system, where a rename is atomic."""
        work = self.scratch / "work"
        folder = work / f".incoming-{secrets.token_hex(6)}"
        folder.mkdir(parents=True)
        for left in work.glob(".incoming-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        return folder

    def _put(self, folder: Path) -> str:
        listing = listing_of(folder)
        digest = digest_of(listing)
        mine = self._is_mine(folder)
        if self.fault(digest) is None:
            if mine:
                shutil.rmtree(folder)
            return digest
        if not mine:
            folder = self._copy(folder, listing)
        for name in listing:
            sync_file(folder / name)
        for parent, _, _ in os.walk(folder):
            sync_folder(Path(parent))
        # The listing first: it proves itself, and the rename then is the one moment of truth.
        write_durably(self._objects / f"{digest}.json", listing_bytes(listing))
        self._rename(folder, digest)
        return digest

    def _is_mine(self, folder: Path) -> bool:
        work = (self.scratch / "work").resolve()
        return (
            folder.resolve().is_relative_to(work)
            and folder.stat().st_dev == self._objects.stat().st_dev
        )

    def _copy(self, folder: Path, listing: Listing) -> Path:
        target = self.incoming()
        try:
            shutil.copytree(folder, target, dirs_exist_ok=True)
            if listing_of(target) != listing:
                raise StoreError(
                    f"{folder} changed while it was published", "Publish it once it is complete"
                )
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return target

    def _rename(self, folder: Path, digest: str) -> None:
        """Put a folder in an object's place, unless a believable one has got there first."""
        target = self._objects / digest
        while True:
            try:
                os.rename(folder, target)
                break
            except OSError:
                if not target.is_dir():
                    raise
            if self.fault(digest) is None:
                shutil.rmtree(folder)
                break
            corrupt = self.incoming()
            with suppress(FileNotFoundError):  # another publisher may be healing it as well
                os.rename(target, corrupt)
            shutil.rmtree(corrupt, ignore_errors=True)
        sync_folder(self._objects)
