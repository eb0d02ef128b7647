"""Turning off the gate, the whitening, the KL, the margin or the loss mask is noticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED_TESTS = {
    "gate": "tests/kernels/test_ppo.py::test_the_gate_by_hand",
    "whitening": "tests/traps/test_trap_10_whitening.py"
    "::test_scores_are_the_whitened_rewards_of_the_finished",
    "kl": "tests/traps/test_trap_08_kl_gradient.py::test_the_kl_is_signed_at_every_token",
    "margin": "tests/kernels/test_losses.py::test_ranking_loss_by_hand",
    "loss_mask": "tests/stages/text/test_dialogue.py"
    "::test_only_marked_answers_and_their_eos_are_learned",
}
FAILED_TESTS = 1
"""pytest's exit code where tests ran and some of them failed."""


def outcome(tests: list[str], turned_off: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "turned_off", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "TURNED_OFF": turned_off}
    return subprocess.run(
        [*command, "-n0", *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_named_tests_pass_with_nothing_turned_off():
    ran = outcome(list(NAMED_TESTS.values()))
    assert ran.returncode == 0, ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", NAMED_TESTS)
def test_turning_it_off_makes_its_test_fail(part):
    ran = outcome([NAMED_TESTS[part]], part)
    assert ran.returncode == FAILED_TESTS, ran.stdout
    assert " failed" in ran.stdout
    assert "AssertionError" in ran.stdout
