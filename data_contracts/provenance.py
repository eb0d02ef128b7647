"""Which code made an artifact: recorded beside it, never part of its key."""

import ast
import functools
import hashlib
import subprocess
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec, resolve_name
from pathlib import Path

_GIT_SECONDS = 10


def code_digest(module: str, packages: Collection[str]) -> str:
    """sha256 in hex over the sources behind a module, by name and content; see `sources_of`.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources_of(module, packages).items()):
        digest.update(f"{name}\0{hash_of_source(path)}\n".encode())
    return digest.hexdigest()


def sources_of(module: str, packages: Collection[str]) -> dict[str, Path]:
    """Source files of a module and of all that it imports from `packages`, by module name.

    Read from the import statements, those inside functions too, and followed from file to file; a
    module's packages run before it and are part of it. A name that is computed is not seen.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    if _file_of(module) is None:
        raise ModuleNotFoundError(f"There is no module {module!r} to read the source of")
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file_of(name)
        if path is None:
            continue
        found[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        wanted = _imported(name, path)
        waiting += [other for other in wanted if other.partition(".")[0] in packages]
    return found


def hash_of_source(path: Path) -> str:
    """sha256 of a source file, whatever its line endings."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def git_commit(package: str = "data_contracts") -> str:
    """Commit of the checkout a package is imported from, "+changes" when it is edited; else ""."""
    origin = _file_of(package)
    if origin is None:
        raise ModuleNotFoundError(f"There is no package {package!r} to look for a checkout of")
    commit = _git(origin.parent, "rev-parse", "HEAD")
    if not commit:
        return ""
    is_edited = _git(origin.parent, "status", "--porcelain", "-uno")
    return f"{commit}+changes" if is_edited else commit


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions; those that are not installed are left out."""
    versions = ((name, _version(name)) for name in sorted(set(names)))
    return {name: version for name, version in versions if version is not None}


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _file_of(module: str) -> Path | None:
    """Where a module's source is, found without importing it; None when there is none."""
    root, *parts = module.split(".")
    spec = find_spec(root)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    if not parts:
        return origin
    path = origin.parent.joinpath(*parts)
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imported(module: str, path: Path) -> frozenset[str]:
    stat = path.stat()
    return _names_imported(module, path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _names_imported(module: str, path: Path, size_bytes: int, modified_ns: int) -> frozenset[str]:
    """Dotted names in a file's import statements, of modules or of what is in them.

    Size and time are there so that a changed file is read again.
    """
    is_package = path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    return frozenset(_names_in(ast.parse(path.read_bytes()), package))


def _names_in(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no git on this machine: the code digest still tells versions apart
    return done.stdout.strip() if done.returncode == 0 else ""
