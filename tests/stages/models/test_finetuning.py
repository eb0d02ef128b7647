"""Fine-tuning that diverges ends, and names the rows; until then it says what it skipped."""

import json
from pathlib import Path

import pytest
import torch

from data_contracts.store import Store
from kernels.model import CausalLM, ModelConfig
from stages.models.batches import Example
from stages.models.finetuning import FinetuningSettings, finetune
from stages.runtime.distributed import process_group
from stages.runtime.engine import DivergedError, EngineSettings
from stages.runtime.stage import WorkDir

CONFIG = ModelConfig(40, 16, 1, 2, 2, 32, max_seq_len=32)
EXAMPLES = [Example([1, 5 + i, 6 + i, 2], [False, True, True, True], f"demo-{i}") for i in range(6)]


@pytest.fixture
def work(tmp_path: Path):
    (tmp_path / "attempt-1").mkdir()
    return WorkDir(tmp_path / "attempt-1", process_group(), Store.open(tmp_path / "home"))


def test_weights_that_blow_up_end_training_with_the_rows_of_the_last_batch(work):
    settings = FinetuningSettings(
        learning_rate=1e30,
        sequence_length=4,
        global_batch_size=2,
        num_epochs=4,
        engine=EngineSettings(max_skipped_in_a_row=2),
    )
    model = CausalLM(CONFIG, torch.Generator().manual_seed(0))
    with pytest.raises(DivergedError, match=r"3 in a row.*rows demo-\d, demo-\d\. Look"):
        finetune(model, EXAMPLES, settings, 0, work)
    rows = [json.loads(line) for line in (work.attempt / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["train/skipped_steps"] for row in rows]
    assert skipped == [*[0] * (len(rows) - 2), 1, 2]
