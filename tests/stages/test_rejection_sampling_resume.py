"""A fine-tuning that was interrupted goes on with the samples that it has learnt from."""

import math

import pytest
from small_store import prompt, small_store, table

from data_contracts.errors import UserError
from data_contracts.parquet import read_table
from data_contracts.tables import CONTRACTS
from stages import rejection_sampling
from stages.models.batches import Example

DEMONSTRATION = {
    "demonstration_id": "d",
    "source": "own",
    "messages": [
        {"role": "user", "content": "a river", "loss": False},
        {"role": "assistant", "content": "walls", "loss": True},
    ],
}


class KilledError(Exception):
    """Stands for the end of the process in the middle of the fine-tuning."""


def three_prompts(tmp_path, **changes):
    """A place to sample for three prompts in, and the settings that do it."""
    work, refs = small_store(tmp_path, [prompt(f"h{i}", f"The river has {i}") for i in range(3)])
    names = ("prompts", "policy", "helpfulness_rm", "safety_rm")
    values = {
        **{name: refs[name] for name in names},
        "version": 1,
        "start_from": refs["policy"],
        "demonstrations": table(work, tmp_path / "sft", "demonstrations", [DEMONSTRATION]),
        "num_prompts": {"helpfulness": 3},
        "num_samples": 3,
        "max_new_tokens": 16,
        "drop_all_unsafe": False,
        "finetuning": {"sequence_length": 64},
        **changes,
    }
    return work, rejection_sampling.Config.model_validate(values)


def test_a_prompt_whose_answer_could_not_be_learnt_is_refused_before_it_is_sampled(tmp_path):
    """The model's context has room for it, and a sequence of the fine-tuning has not."""
    work, config = three_prompts(tmp_path, finetuning={"sequence_length": 20})
    with pytest.raises(UserError, match=r"Prompt h\d .* tokens; 4 fit beside the response"):
        rejection_sampling.run(config, work)


def test_samples_are_drawn_once_and_learnt_to_the_end(tmp_path, monkeypatch):
    work, config = three_prompts(tmp_path)
    learnt: list[list[Example]] = []

    def killed(model, examples, *rest):
        learnt.append(examples)
        if len(learnt) == 1:
            raise KilledError

    monkeypatch.setattr(rejection_sampling, "finetune", killed)
    monkeypatch.setattr(rejection_sampling, "save_policy", lambda *rest: ("", ""))
    with pytest.raises(KilledError):
        rejection_sampling.run(config, work)
    sample = rejection_sampling.sample_responses
    monkeypatch.setattr(rejection_sampling, "sample_responses", None)  # not called again
    resumed = rejection_sampling.run(config, work)
    assert learnt[0] == learnt[1] != []

    for file in (work.checkpoints / "sampling").iterdir():
        file.unlink()
    monkeypatch.setattr(rejection_sampling, "sample_responses", sample)
    anew = rejection_sampling.run(config, work)
    assert resumed.metrics == pytest.approx(anew.metrics)
    assert not math.isnan(resumed.metrics["temperature"])
    rows = [
        read_table(output.artifacts["scored_samples"][0], CONTRACTS["scored_samples"]).to_pylist()
        for output in (resumed, anew)
    ]
    assert rows[0] == rows[1]


def test_samples_that_were_not_written_to_the_end_are_drawn_again(tmp_path):
    work, _ = small_store(tmp_path, [prompt("h", "The river")])
    folder = work.checkpoints / "sampling"
    folder.mkdir(parents=True)
    (folder / "scored_samples.parquet").write_bytes(b"torn")
    assert rejection_sampling.kept_samples(work) is None
