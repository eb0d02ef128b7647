"""Every command of the README is run: on the small recipe where the README says demo or real."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from whole_loop_home import Rlhf, rlhf_here, run_rlhf

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    """Lines of the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text()
    for command in commands():
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


def test_every_other_command_is_rlhf():
    assert all(command.startswith(("make ", "rlhf ")) for command in commands())


ELSEWHERE = ("rlhf run", "rlhf up", "rlhf status --watch", "rlhf stage reward_model")
"""Long runs, which are planned below; what stays until it is ended, see test_up.py; and the stage
that test_run.py forces."""


def rlhf_for(arguments: list[str]) -> Rlhf:
    """A process of its own for what trains or serves; a new interpreter costs seconds."""
    return run_rlhf if arguments[0] in ("stage", "stop", "down") else rlhf_here


@pytest.mark.parametrize(
    "command", [c for c in commands() if c.startswith("rlhf ") and not c.startswith(ELSEWHERE)]
)
def test_a_command_works(command: str, home: Path, tiny: Path, tmp_path: Path):
    arguments = shlex.split(command)[1:]
    if arguments[0] == "check":
        table = next((home / "objects").glob("*/preferences.parquet"))
        shutil.copy(table, tmp_path / "preferences.parquet")
    shorter = {"demo": str(tiny), "V5": "V2"}
    small = [shorter.get(argument, argument) for argument in arguments]
    own_home = home
    if "70b" in arguments:  # a home holds one product
        own_home = tmp_path / "home"
    elif "--num-processes" in arguments:  # another rounding: not in the home that others look at
        own_home = Path(shutil.copytree(home, tmp_path / "home"))
    out = rlhf_for(small)(*small, home=own_home, cwd=tmp_path)
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-2000:]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("rlhf run")])
def test_a_run_is_planned(command: str, tmp_path: Path):
    """The long runs: their recipes, data files and settings are read and planned."""
    data = README.parent.parent / "shared" / "data"
    if not data.exists():
        pytest.skip("the public data of ../shared/data is not here")
    recipe = re.search(r"```yaml\n# mine.yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert recipe is not None
    (tmp_path / "mine.yaml").write_text(recipe[1])
    arguments = [str(data) if a == "../shared/data" else a for a in shlex.split(command)[1:]]
    out = rlhf_here("plan", *arguments[1:], home=tmp_path / "home", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
