import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_contracts.provenance import code_digest, git_commit, package_versions, sources_of

PACKAGE = "a_package_of_the_test"
FILES = {
    "__init__.py": "",
    "stage.py": f"import json\nfrom {PACKAGE} import near\nimport {PACKAGE}.inner.deep as deep\n",
    "near.py": "def late():\n    from . import later\n",
    "later.py": "import other_package_of_the_test\n",
    "inner/__init__.py": "from .. import inner_needs\n",
    "inner/deep.py": f"thing = 1\nimport {PACKAGE}.stage  # a circle\n",
    "inner_needs.py": "",
    "elsewhere.py": "import json\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / PACKAGE
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "other_package_of_the_test.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    assert PACKAGE not in sys.modules, "sources are read, not run"


def digest(packages: tuple[str, ...] = (PACKAGE,)) -> str:
    return code_digest(f"{PACKAGE}.stage", packages)


def test_sources_are_those_of_the_module_and_of_all_it_imports(package: Path) -> None:
    found = sources_of(f"{PACKAGE}.stage", [PACKAGE])
    names = ("stage", "near", "later", "inner", "inner.deep", "inner_needs")
    assert set(found) == {PACKAGE, *(f"{PACKAGE}.{name}" for name in names)}
    assert found[f"{PACKAGE}.inner"] == package / "inner" / "__init__.py"


def test_the_code_digest_follows_what_a_module_runs(package: Path) -> None:
    before = digest()
    (package / "notes.txt").write_text("not code")
    (package / "elsewhere.py").write_text("edited = True\n")
    (package / "later.py").write_bytes(FILES["later.py"].replace("\n", "\r\n").encode())
    assert digest() == before
    (package / "later.py").write_text("edited = True\n")
    edited = digest()
    (package / "inner_needs.py").rename(package / "renamed.py")
    (package / "inner" / "__init__.py").write_text("from .. import renamed\n")
    assert len({before, edited, digest()}) == 3


def test_only_the_named_packages_are_followed(package: Path) -> None:
    both = (PACKAGE, "other_package_of_the_test")
    alone, with_other = digest(), digest(both)
    (package.parent / "other_package_of_the_test.py").write_text("x = 2\n")
    assert digest() == alone
    assert digest(both) != with_other


def test_a_module_that_is_not_there() -> None:
    for name in ("there_is_no_such_package", "data_contracts.nor_this"):
        with pytest.raises(ModuleNotFoundError, match=name):
            code_digest(name, ["data_contracts"])


def test_stages_share_the_runtime_and_not_each_other() -> None:
    packages = ("data_contracts", "kernels", "stages")
    ppo = sources_of("stages.ppo", packages)
    assert {"stages.runtime.engine", "kernels.ppo", "data_contracts.store", "stages"} <= set(ppo)
    assert not {"stages.sft", "stages.pretrain", "stages.sandbox.world"} & set(ppo)
    assert "kernels.model" not in sources_of("stages.ingest", packages)


def test_git_is_looked_up_softly(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(package.name) == ""
    git = ["git", "-C", str(package), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    clean = git_commit(package.name)
    assert len(clean) == 40
    (package / "__init__.py").write_text("y = 1\n")
    assert git_commit(package.name) == f"{clean}+changes"
    monkeypatch.setenv("PATH", "")
    assert git_commit(package.name) == ""


def test_versions_of_what_is_installed() -> None:
    versions = package_versions(["pyarrow", "there-is-no-such-package"])
    assert list(versions) == ["pyarrow"]
