"""Both stages on HH-RLHF's transcripts: dialogues of several turns as people wrote them."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from small_store import prompt, small_store

from data_contracts.parquet import read_table
from data_contracts.tables import CONTRACTS
from stages import ghost_attention, safety_distillation
from stages.importers.preferences import hh
from stages.importers.reading import read_records
from stages.importers.rows import Preference

TRANSCRIPTS = Path(__file__).parents[3] / "shared/data/preferences/hh_harmless_base.jsonl.gz"
CONTEXT = 2048
"""The small tokenizer spends a token or more on a letter."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Sixteen short transcripts, half of them of several turns, as prompts of the safety domain."""
    if not TRANSCRIPTS.exists():
        pytest.skip("the public data of ../shared/data is not here")
    rows = (hh(record) for record in read_records(TRANSCRIPTS))
    dialogues = [row.messages for row in islice(rows, 400) if isinstance(row, Preference)]
    short = [d for d in dialogues if sum(len(m["content"]) for m in d) < 500]
    chosen = [d for d in short if len(d) > 1][:8] + [d for d in short if len(d) == 1][:8]
    prompts = [
        prompt(f"p{i}", *(m["content"] for m in d), domain="safety") for i, d in enumerate(chosen)
    ]
    work, refs = small_store(tmp_path_factory.mktemp("real"), prompts, CONTEXT)
    return work, refs, {row["prompt_id"]: row["messages"] for row in prompts}


def test_ghost_attention_keeps_what_people_said_and_learns_its_own_last_answer(store):
    work, refs, asked = store
    config = ghost_attention.Config(
        version=2,
        prompts=refs["prompts"],
        policy=refs["policy"],
        num_prompts={"safety": 16},
        max_turns=2,
        num_lists=0,
        max_new_tokens=24,
    )
    output = ghost_attention.run(config, work)
    rows = read_table(output.artifacts["demonstrations"][0], CONTRACTS["demonstrations"])
    kinds = Counter()
    for row in rows.to_pylist():
        system, *turns = row["messages"]
        assert system["role"] == "system"
        assert system["content"].startswith(("You enjoy", "Always", "Hobby", "Language", "Figure"))
        assert [m["loss"] for m in turns] == [False] * (len(turns) - 1) + [True]
        own = asked[row["demonstration_id"].removeprefix("gatt-v2-")]
        kinds["transcript" if len(own) > 1 else "joined"] += 1
        given = [(m["role"], m["content"]) for m in turns]
        assert given[: len(own)] == [(m["role"], m["content"]) for m in own]
    assert kinds["transcript"] >= 2
    assert kinds["joined"] >= 1


def test_safety_distillation_keeps_the_whole_dialogue_without_its_preprompt(store, monkeypatch):
    work, refs, asked = store
    calls = iter((0.0, 1.0))  # the Safety RM prefers every distilled answer
    monkeypatch.setattr(
        safety_distillation,
        "score_sequences",
        lambda scorer, sequences, rank: torch.full((len(sequences),), next(calls)),
    )
    config = safety_distillation.Config(
        version=2,
        prompts=refs["prompts"],
        policy=refs["policy"],
        safety_rm=refs["safety_rm"],
        num_prompts=16,
        max_new_tokens=24,
    )
    output = safety_distillation.run(config, work)
    rows = read_table(output.artifacts["demonstrations"][0], CONTRACTS["demonstrations"])
    assert rows.num_rows >= 2
    for row in rows.to_pylist():
        *before, answer = row["messages"]
        own = asked[row["demonstration_id"].removeprefix("distilled-v2-")]
        assert [(m["role"], m["content"]) for m in before] == [
            (m["role"], m["content"]) for m in own
        ]
        assert answer["loss"]
        assert not any(m["loss"] for m in before)
    assert output.metrics["targeted_share"] == 0  # HH-RLHF names no risk category
