"""Where a store keeps its bytes: a local folder, or any place that fsspec can reach.

    objects/<digest>/       the files of an artifact
    objects/<digest>.json   its listing {relative path: sha256}, whose own sha256 is the digest
    <any other name>        small JSON documents: manifests, the ledger

A local object is complete once its folder is renamed into place, a remote one once its listing is
written; a kill before that leaves bytes that nobody believes.
"""

from pathlib import Path
from typing import NamedTuple, Protocol


class Usage(NamedTuple):
    """What a document or a folder takes up."""

    num_bytes: int
    modified_at: float
    """Of the newest file, Unix time in seconds; 0 when there is none."""


class Home(Protocol):
    """What a store asks of the place it lives in."""

    url: str
    scratch: Path
    """Local folder for work, locks and downloads."""

    def read(self, name: str) -> bytes | None:
        """A document's bytes, or None when there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replace a document in one step."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the documents in a folder, sorted."""
        ...

    def put(self, folder: Path) -> str:
        """Keep a folder's files as an object and return its digest."""
        ...

    def fault(self, digest: str) -> str | None:
        """Why an object cannot be believed ("missing", "corrupt: …"), or None when it can."""
        ...

    def has(self, digest: str) -> bool:
        """Whether an object is there, its contents unread."""
        ...

    def fetch(self, digest: str) -> Path:
        """Local folder with the verified files of an object."""
        ...

    def usage(self, name: str) -> Usage:
        """Size and age of a document or a folder; nothing when it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a document or a folder, if it is there."""
        ...
