"""The planned state of a rank against what DeepSpeed allocates on two, at every ZeRO stage.

Everything is on the CPU here, so what is offloaded to the host counts with the rest.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from capacity_ranks import BUCKET_ELEMENTS, CASES, CONFIG

from flows.capacity import memory
from flows.capacity.holdings import Knobs, pretrain
from stages.pretrain import PretrainSettings
from stages.runtime.engine import EngineSettings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("memory_of_ranks")]
PARAMETERS = CONFIG.num_parameters()
GRADIENTS_AT_REST = {"bf16-1": 4, "bf16-3": 4 / 2, "fp32-3": 4 / 2}
"""Bytes a parameter of the sums that DeepSpeed does not free between steps."""
PADDING = 0.01
"""Flat buffers are padded, buckets stay, and AdamW counts its steps."""


@pytest.fixture(scope="module")
def allocated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("allocated")
    command = "torch.distributed.run --standalone --nproc_per_node 2 -m capacity_ranks"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "allocated.json").read_text())


@pytest.mark.parametrize("name", [name for name in CASES if "offload" not in name])
def test_weights_and_optimizer(allocated: dict[str, dict[str, int]], name: str) -> None:
    engine = EngineSettings.model_validate(CASES[name])
    state = memory.trained_state(PARAMETERS, engine, num_ranks=2)
    gradients = GRADIENTS_AT_REST.get(name, 0) * PARAMETERS
    expected = state.weights + state.optimizer + gradients
    assert allocated[name]["at_rest"] == pytest.approx(expected, rel=PADDING)


@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_a_step(
    allocated: dict[str, dict[str, int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "BUCKET_ELEMENTS", BUCKET_ELEMENTS)
    monkeypatch.setattr(memory, "activations", partial(memory.activations, fused=False))
    settings = PretrainSettings(sequence_length=8, global_batch_size=4, micro_batch_size=1)
    knobs = Knobs(EngineSettings.model_validate(CASES[name]), micro_batch_size=1)
    held = pretrain(settings, CONFIG, knobs, num_ranks=2)
    assert held.peak + held.host == pytest.approx(allocated[name]["peak"], rel=0.1)


def test_a_model_that_only_evaluates(allocated: dict[str, dict[str, int]]) -> None:
    for zero, num_bytes in allocated["frozen"].items():
        engine = EngineSettings.model_validate({"zero_stage": int(zero), "precision": "bf16"})
        expected = memory.frozen_weights(PARAMETERS, engine, 2)
        assert num_bytes == pytest.approx(expected, rel=PADDING)
