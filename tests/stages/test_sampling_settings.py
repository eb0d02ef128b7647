"""What counts as a finished response, and settings that would fail once models are loaded."""

import pytest
from pydantic import ValidationError
from small_store import small_tokenizer

from stages.evaluate import EvaluateSettings
from stages.ghost_attention import GhostAttentionSettings
from stages.models.sampling import Sample, sample_of
from stages.ppo import PpoSettings
from stages.rejection_sampling import RejectionSamplingSettings, distinct_samples
from stages.safety_distillation import SafetyDistillationSettings
from stages.sample_pairs import SamplePairsSettings


def test_an_answer_that_opens_the_next_turn_is_not_finished():
    """Its control pieces show in no text: it would look like the clean answer that it begins."""
    tokenizer = small_tokenizer()
    text, turn = tokenizer.encode("The river"), tokenizer.separators
    assert turn is not None
    clean = [*text, tokenizer.eos_id]
    opened = [*text, turn.begin_instruction, turn.end_instruction, tokenizer.eos_id]
    assert sample_of(clean, True, tokenizer) == Sample(clean, "The river", True)
    assert sample_of(opened, True, tokenizer) == Sample(opened, "The river", False)
    assert sample_of(text, False, tokenizer) == Sample(text, "The river", False)
    samples = [sample_of(ids, True, tokenizer) for ids in (opened, clean)]
    assert distinct_samples([0, 1], samples) == [1]


TINY = 1e-4


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (EvaluateSettings, "temperature", TINY),
        (GhostAttentionSettings, "temperature", TINY),
        (SafetyDistillationSettings, "temperature", TINY),
        (RejectionSamplingSettings, "temperature", TINY),
        (RejectionSamplingSettings, "temperature", 0),
        (RejectionSamplingSettings, "search_temperatures", [1.0, TINY]),
        (SamplePairsSettings, "temperatures_a", [TINY]),
        (PpoSettings, "temperature", TINY),
        (PpoSettings, "temperature", 0),
    ],
)
def test_a_temperature_that_cannot_be_sampled_at_is_refused(settings, field, value):
    with pytest.raises(ValidationError, match=r"give at least 0\.001|greater than 0"):
        settings.model_validate({field: value})


def test_greedy_is_a_temperature_where_one_answer_is_enough():
    assert EvaluateSettings(temperature=0).temperature == 0
    assert SamplePairsSettings(temperatures_b=(0, 1.0)).temperatures_b == (0, 1.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"kl_beta": 0}, "0 stays 0"), ({"kl_horizon": 512}, "no longer than a batch of 512")],
)
def test_a_penalty_that_could_not_be_moved_or_would_jump_is_refused(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        PpoSettings.model_validate({"kl_target": 6.0, **changes})
    PpoSettings.model_validate(changes)  # without a target it stays what it is
