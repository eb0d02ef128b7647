"""A store's home on any file system that fsspec can reach."""

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_contracts.artifacts import digest_of, file_names, listing_bytes, listing_of
from data_contracts.belief import MISSING, difference, unbelievable
from data_contracts.errors import StoreError, UserError
from data_contracts.homes import Usage
from data_contracts.local_home import LocalHome
from data_contracts.locks import locked

_CHUNK_BYTES = 8 * 2**20


class RemoteHome:
    """Any fsspec file system, with a local folder for work and verified copies.

    Locks hold between the processes of this machine only. Runners on several machines still
    corrupt nothing, since objects are named by content; the later manifest stays.
    """

    def __init__(self, url: str, files: Any, root: str, cache: LocalHome) -> None:
        self.url = url
        self.scratch = cache.scratch
        self._files = files
        self._root = root.rstrip("/")
        self._cache = cache
        self._hashes: dict[tuple[str, str], str] = {}

    def read(self, name: str) -> bytes | None:
        """See Home."""
        try:
            return self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreachable("read", name) from error

    def write(self, name: str, content: bytes) -> None:
        """See Home. Object stores replace an object in one step by themselves."""
        path = self._path(name)
        try:
            self._in_folder(path, lambda: self._files.pipe_file(path, content))
        except OSError as error:
            raise self._unreachable("write", name) from error

    def names(self, folder: str) -> list[str]:
        """See Home."""
        self._files.invalidate_cache()  # listings are cached for the process by default
        try:
            paths = self._files.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreachable("list", folder) from error
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def put(self, folder: Path) -> str:
        """See Home. The local copy is kept: the next stage on this machine reads it."""
        digest = self._cache.put(folder)
        if self.fault(digest) is not None:
            self._upload(digest, self._cache.fetch(digest))
        return digest

    def fault(self, digest: str) -> str | None:
        """See Home. Streams each file once per process and version of it."""
        content = self.read(f"objects/{digest}.json")
        if content is None:
            return MISSING
        found = self._find(digest)
        return difference(digest, content, sorted(found), lambda name: self._hash(*found[name]))

    def has(self, digest: str) -> bool:
        """See Home."""
        return self.read(f"objects/{digest}.json") is not None

    def fetch(self, digest: str) -> Path:
        """See Home. Downloads what this machine does not hold yet."""
        # One download for all ranks of a machine, which ask at the same time.
        lock = self.scratch / "locks" / f"object-{digest}.lock"
        if self._cache.fault(digest) is not None:
            with locked(lock, f"the download of {digest[:12]}"):
                if self._cache.fault(digest) is not None:
                    self._download(digest)
        return self._cache.fetch(digest)

    def usage(self, name: str) -> Usage:
        """See Home."""
        if name.startswith("work/"):
            return self._cache.usage(name)
        self._files.invalidate_cache()
        try:
            found = self._files.find(self._path(name), detail=True)
            times = [self._files.modified(path).timestamp() for path in found]
        except FileNotFoundError:
            return Usage(0, 0.0)
        except OSError as error:
            raise self._unreachable("list", name) from error
        return Usage(sum(info["size"] for info in found.values()), max(times, default=0.0))

    def remove(self, name: str) -> None:
        """See Home. A local copy goes with it."""
        try:
            if self._files.exists(self._path(name)):
                self._files.rm(self._path(name), recursive=True)
        except OSError as error:
            raise self._unreachable("remove", name) from error
        self._cache.remove(name)

    def _upload(self, digest: str, folder: Path) -> None:
        target = self._path(f"objects/{digest}")
        try:
            for stale in (f"{target}.json", target):
                if self._files.exists(stale):
                    self._files.rm(stale, recursive=True)
            for name in file_names(folder):
                path = f"{target}/{name}"
                put = partial(self._files.put_file, str(folder / name), path)
                self._in_folder(path, put)
        except OSError as error:
            raise self._unreachable("write", f"objects/{digest}") from error
        self.write(f"objects/{digest}.json", listing_bytes(listing_of(folder)))

    def _download(self, digest: str) -> None:
        found = self._find(digest)
        if not found:
            raise unbelievable(digest, self.url, MISSING)
        folder = self._cache.incoming()
        try:
            for name, (path, _) in found.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(path, str(folder / name))
            if digest_of(listing_of(folder)) != digest:
                raise unbelievable(digest, self.url, self.fault(digest) or "cut short")
            self._cache.put(folder)
        except UserError:
            raise
        except OSError as error:
            raise self._unreachable("read", f"objects/{digest}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _find(self, digest: str) -> dict[str, tuple[str, str]]:
        """Path and fingerprint of each file of an object, by its name in the object."""
        root = self._path(f"objects/{digest}")
        self._files.invalidate_cache()
        try:
            found = self._files.find(root, detail=True)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreachable("list", f"objects/{digest}") from error
        # The listing shares the prefix that some object stores match by.
        return {
            path[len(root) + 1 :]: (path, repr(sorted(info.items(), key=lambda item: item[0])))
            for path, info in found.items()
            if path.startswith(f"{root}/")
        }

    def _hash(self, path: str, fingerprint: str) -> str:
        known = self._hashes.get((path, fingerprint))
        if known is None:
            digest = hashlib.sha256()
            try:
                with self._files.open(path, "rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        digest.update(chunk)
            except OSError as error:
                raise self._unreachable("read", path) from error
            known = self._hashes[path, fingerprint] = digest.hexdigest()
        return known

    def _in_folder(self, path: str, write: Callable[[], object]) -> None:
        """Write a file; make its folder first where the file system, unlike S3, needs one."""
        try:
            write()
        except FileNotFoundError:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            write()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _unreachable(self, action: str, name: str) -> StoreError:
        return StoreError(
            f"Cannot {action} {name} in the store {self.url}",
            "Check the address, the network and the credentials, and run it again",
        )
