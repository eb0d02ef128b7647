"""The test prompts are for evaluate alone: no stage learns from them, searches or stops on them."""

import ast
from pathlib import Path

import pytest

import stages
from data_contracts.ratings import Split

MODULES = sorted(Path(stages.__file__).parent.glob("*.py"))
CHOOSERS = {"select_prompts", "load_prompts", "sample_and_score"}
"""Functions that take a split."""


def splits_asked_for(path: Path) -> set[str]:
    """The splits that a stage names in a call that chooses prompts."""
    return {
        argument.value
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in CHOOSERS
        for argument in call.args
        if isinstance(argument, ast.Constant) and argument.value in set(Split)
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_evaluate_reads_test_prompts(path: Path):
    asked = splits_asked_for(path)
    assert asked == {"test"} if path.stem == "evaluate" else "test" not in asked


def test_what_tunes_and_stops_reads_validation_prompts():
    asked = {path.stem: splits_asked_for(path) for path in MODULES}
    assert asked["ppo"] == {"train", "validation"}
    assert asked["rejection_sampling"] == {"validation"}  # "train" is its default
    assert asked["sample_pairs"] == {"train"}
