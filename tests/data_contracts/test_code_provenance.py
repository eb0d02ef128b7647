import subprocess
import sys

import pytest

from data_contracts.provenance import code_digest, git_commit, package_versions


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "a_package_of_the_test"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "sub" / "code.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop(folder.name, None)


def test_the_code_digest_follows_the_source(package):
    before = code_digest([package.name])
    (package / "notes.txt").write_text("not code")
    (package / "sub" / "code.py").write_bytes(b"x = 1\r\n")
    assert code_digest([package.name]) == before
    (package / "sub" / "code.py").write_text("x = 2\n")
    changed = code_digest([package.name])
    (package / "sub" / "code.py").rename(package / "sub" / "renamed.py")
    assert len({before, changed, code_digest([package.name])}) == 3


def test_the_code_digest_takes_modules_and_ignores_order():
    names = ["data_contracts.base", "data_contracts"]
    assert code_digest(names) == code_digest(names[::-1]) != code_digest(names[:1])
    with pytest.raises(ModuleNotFoundError):
        code_digest(["there_is_no_such_package"])


def test_git_is_looked_up_softly(package, monkeypatch):
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


def test_versions_of_what_is_installed():
    versions = package_versions(["pyarrow", "there-is-no-such-package"])
    assert list(versions) == ["pyarrow"]
