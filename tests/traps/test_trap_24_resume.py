"""Trap 24: a resumed run is not the run that was interrupted.

When it bites: data is seen twice or never, moments and controllers start over, and the curve has a
step where the machine was changed; a result cannot be repeated.

N steps are k steps, `kill -9`, and a resume for the other N - k: equal to the last bit in weights,
optimizer, generators, controllers and metrics, over the end of an epoch, inside gradient
accumulation and inside a save, at every ZeRO stage; and within 1e-3 of the loss when the number of
ranks changes. Real stages in real processes; `make resume` prints all cells.

Planted by `resuming.bugs`, and each caught by the check below:
- optimizer moments that start at zero; Adam's bias correction that starts over;
- a learning-rate schedule that starts over; weights saved in bf16;
- a batch that is skipped; data in an order that is drawn from a generator not saved;
- controllers (early stopping and its baseline) that start over; a critic that starts over;
- metrics of steps done again that stand twice.
"""

import pytest
from resuming.bugs import BUGS
from resuming.matrix import COLUMNS, STAGES, Matrix

FAST = "mid-accumulation"
"""It is over the end of an epoch as well."""
SLOW = [column for column in COLUMNS if column != FAST]
PHASES = [
    f"time/{name}" for name in ("sync", "generate", "logprobs", "values", "rewards", "update")
]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    return Matrix(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def cells(matrix):
    return matrix.cells(STAGES, [FAST])


@pytest.mark.parametrize("stage", STAGES)
def test_killed_inside_a_step_and_resumed_is_bitwise_the_same(cells, stage):
    assert cells[stage, FAST].text == "bitwise"


def test_no_step_is_lost_or_doubled_in_the_metrics(cells, matrix):
    for stage in STAGES:
        steps = [row["step"] for row in matrix.report(stage, FAST)["metrics"]]
        assert steps == sorted(set(steps))
        assert steps[-6:] == list(range(steps[-1] - 5, steps[-1] + 1))


def test_ppo_logs_its_time_by_phase_on_every_iteration(cells, matrix):
    before_training, *iterations = matrix.report("ppo", FAST)["phases"]
    assert before_training == ["time"]
    assert [row[1:] for row in iterations] == [PHASES] * 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("column", SLOW)
def test_every_cell_of_the_matrix_holds(tmp_path, column):
    cells = Matrix(tmp_path).cells(STAGES, [column])
    assert [cell.text for cell in cells.values() if not cell.holds] == []


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(matrix, bug):
    _, stage = BUGS[bug]
    (cell,) = matrix.cells([stage], [FAST], bug).values()
    assert not cell.holds
