"""One home in which the whole loop has run, made once for all tests that look at it."""

import json
from pathlib import Path

import pytest
from whole_loop_home import PATIENCE_SECONDS, TINY, rlhf_here, run_rlhf


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker makes the home for all of these tests, and has time for it on a busy machine."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("whole_loop"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(2 * PATIENCE_SECONDS))


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home after `rlhf run`, and what the command printed."""
    home = tmp_path_factory.mktemp("loop") / "home"
    out = run_rlhf("run", "--recipe", TINY, home=home)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    return home, out.stdout


@pytest.fixture(scope="session")
def home(first_run: tuple[Path, str]) -> Path:
    """Only the home."""
    return first_run[0]


@pytest.fixture(scope="session")
def models(home: Path) -> dict[str, Path]:
    """Folders of the models as "policy:1", from `rlhf models --json`."""
    out = rlhf_here("models", "--json", home=home)
    assert out.returncode == 0, out.stderr
    return {f"{row['name']}:{row['version']}": Path(row["path"]) for row in json.loads(out.stdout)}


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The small recipe that the home was made with."""
    return TINY
