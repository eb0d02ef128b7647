"""Rows that are longer than the model reads, under settings that would allow them."""

import pytest
from small_store import CONTEXT, small_store, table

from data_contracts.errors import UserError
from stages import reward_model, sft

LONG = "The garden has 7 old walls. " * CONTEXT


def test_a_demonstration_beyond_the_context_is_named(tmp_path):
    work, refs = small_store(tmp_path, [])
    messages = [
        {"role": "user", "content": "Tell.", "loss": False},
        {"role": "assistant", "content": LONG, "loss": True},
    ]
    row = {"demonstration_id": "long", "source": "own", "messages": messages}
    config = sft.Config(
        init_from=refs["policy"],
        demonstrations=table(work, tmp_path / "sft", "demonstrations", [row]),
        sequence_length=10 * CONTEXT,
    )
    with pytest.raises(UserError, match=f"long of source own .* context hold {CONTEXT}"):
        sft.run(config, work)


def test_a_preference_beyond_the_context_is_named(tmp_path):
    work, refs = small_store(tmp_path, [])
    row = {
        "preference_id": "long",
        "prompt_id": "p",
        "domain": "safety",
        "source": "own",
        "batch": 1,
        "split": "train",
        "annotator": "ann",
        "category": None,
        "messages": [{"role": "user", "content": "Tell."}],
        "chosen": LONG,
        "rejected": "No.",
        "rating": None,
        "safety_label": None,
    }
    rows = table(work, tmp_path / "pairs", "preferences", [row])
    config = reward_model.Config(
        domain="safety",
        init_from=refs["policy"],
        preferences=(rows,),
        open_preferences=rows,
        max_tokens=10 * CONTEXT,
    )
    with pytest.raises(UserError, match=f"long of source own .* reads {CONTEXT}"):
        reward_model.run(config, work)
