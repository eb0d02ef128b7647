"""The reward models of a home beside the words of the answers."""

from pathlib import Path

import pytest
import typer

from benchmarks.bag_of_words import VECTORIZERS, compared, main, measured
from data_contracts.ledger import Ledger
from data_contracts.ratings import Domain
from data_contracts.store import Store
from flows.graph import reward_model_name


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("domain", Domain)
def test_the_accuracy_is_the_one_that_the_stage_measured(home: Path, domain: Domain, version: int):
    store = Store.open(home)
    ledger = Ledger(store)
    key = ledger.head(version, reward_model_name(domain))
    assert key is not None
    metrics = store.manifest(key).metrics
    train, held_out, own = measured(store, ledger, version, domain)
    assert own.mean() == pytest.approx(metrics[f"accuracy/{domain}/all"])
    assert len(own) == len(held_out) > 0
    assert {row["split"] for row in train} == {"train"}
    assert {row["split"] for row in held_out} == {"test"}


def test_the_lead_is_the_difference_of_both_accuracies(home: Path):
    store = Store.open(home)
    found = compared(store, Ledger(store), 2, Domain.helpfulness)
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
