"""The reward models of a home beside the words of the answers."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from benchmarks.bag_of_words import (
    VECTORIZERS,
    Subject,
    compared,
    cross_validated,
    folds_of,
    main,
    measured,
    subject_of,
    trained_anew,
)
from data_contracts.ledger import Ledger
from data_contracts.ratings import Domain
from data_contracts.store import Store
from stages.reward_model import question

SPLITS = ("train", "test")


def of_home(home: Path, version: int, domain: Domain) -> Subject:
    store = Store.open(home)
    return subject_of(store, Ledger(store), version, domain)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("domain", Domain)
def test_the_accuracy_is_the_one_that_the_stage_measured(home: Path, domain: Domain, version: int):
    subject = of_home(home, version, domain)
    manifest = subject.store.manifest(subject.key)
    assert manifest is not None
    metrics = manifest.metrics
    train, held_out, own = measured(subject)
    assert own.mean() == pytest.approx(metrics[f"accuracy/{domain}/all"])
    assert len(own) == len(held_out) > 0
    assert {row["split"] for row in train} == {"train"}
    assert {row["split"] for row in held_out} == {"test"}


def test_the_lead_is_the_difference_of_both_accuracies(home: Path):
    found = compared(of_home(home, 2, Domain.helpfulness))
    assert [c.baseline for c in found] == list(VECTORIZERS)
    for c in found:
        assert c.lead.mean == pytest.approx(c.own - c.theirs)
        assert c.lead.low < c.lead.mean < c.lead.high


def test_the_newest_version_is_taken_and_a_wrong_home_is_explained(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(home=str(home))
    assert "reward models of V2" in capsys.readouterr().out
    for wrong, version in ((tmp_path / "none", None), (tmp_path, None), (home, 9)):
        with pytest.raises(typer.Exit):
            main(home=str(wrong), version=version)
    assert "There is no home" in (errors := capsys.readouterr().err)
    assert "V9 has no helpfulness reward model" in errors
    assert not (tmp_path / "none").exists()


def test_in_folds_every_pair_is_held_out_once_and_no_question_is_on_both_sides(home: Path):
    subject = of_home(home, 2, Domain.safety)
    held_out = []
    for rows in folds_of(subject.rows, 3):
        asked = {split: {question(r) for r in rows if r["split"] == split} for split in SPLITS}
        assert not asked["train"] & asked["test"]
        held_out += [row["preference_id"] for row in rows if row["split"] == "test"]
    assert sorted(held_out) == sorted(row["preference_id"] for row in subject.rows)
    found = cross_validated(subject, 2)
    assert [c.baseline for c in found] == list(VECTORIZERS)
    assert {c.num_pairs for c in found} == {len(subject.rows)}
    assert len({c.own for c in found}) == 1
    assert 0 < found[0].own < 1


def test_trained_anew_on_the_same_pairs_it_is_the_model_of_the_stage(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    subject = of_home(home, 1, Domain.safety)
    assert subject.config.continue_from is None
    _, held_out, own = measured(subject)
    often = subject.config.model_copy(update={"checkpoint_every": 1})
    other_fold = next(folds_of(subject.rows, 2))
    trained_anew(replace(subject, config=often), other_fold)
    again, points = trained_anew(replace(subject, config=often), subject.rows)
    assert again == held_out
    assert np.array_equal(points, own)
    assert not any(tmp_path.iterdir()), "a fold leaves nothing that the next one could go on from"
