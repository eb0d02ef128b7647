"""Which code made an artifact: recorded beside it, never part of its key."""

import hashlib
import subprocess
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_GIT_SECONDS = 10


def code_digest(packages: Iterable[str]) -> str:
    """sha256 in hex over the .py files of packages or modules, by name and content.

    Raises:
        ModuleNotFoundError: one of them cannot be imported.
    """
    digest = hashlib.sha256()
    for package in sorted(set(packages)):
        for name, path in _sources(package):
            digest.update(f"{package}\0{name}\0{hash_of_source(path)}\n".encode())
    return digest.hexdigest()


def hash_of_source(path: Path) -> str:
    """sha256 of a source file, whatever its line endings."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def git_commit(package: str = "data_contracts") -> str:
    """Commit of the checkout a package is imported from, "+changes" when it is edited; else ""."""
    folder = _origin(package).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "-uno") else commit


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions; those that are not installed are left out."""
    versions = {}
    for name in sorted(set(names)):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _sources(package: str) -> list[tuple[str, Path]]:
    origin = _origin(package)
    if origin.name != "__init__.py":
        return [(origin.name, origin)]
    folder = origin.parent
    return [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*.py"))]


def _origin(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"There is no package {package!r} to read the source of")
    return Path(spec.origin)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no git on this machine: the code digest still tells versions apart
    return done.stdout.strip() if done.returncode == 0 else ""
