"""What the gates let through, and how the champion moves."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_stages import walk_all

from data_contracts.ratings import Domain
from flows import gates
from flows.gates import Verdict, judge, record
from flows.models import model_digests
from flows.recipe import Recipe
from flows.runner import Walk

NewWalk = Callable[..., Walk]


class Tables:
    """Heads with given tables, by version and node."""

    def __init__(self, accuracies: dict[int, float], win_rates: dict[str, tuple[float, float]]):
        self.accuracies = accuracies
        self.win_rates = win_rates

    def rows(self, version: int, node: str, role: str) -> list[dict[str, Any]]:
        if role == "win_rates":
            return [
                {
                    "version": f"v{version}",
                    "opponent": f"v{version - 1}",
                    "domain": domain,
                    "judge": "reward_model",
                    "win_rate": rate,
                    "low": 0.0,
                    "high": high,
                }
                for domain, (rate, high) in self.win_rates.items()
            ]
        if version not in self.accuracies:
            return []
        rate = self.accuracies[version]
        row = {"rating": None, "accuracy": rate, "low": rate - 0.05, "high": rate + 0.05}
        return [{**row, "test_set": domain.value} for domain in Domain]


def promoted(monkeypatch: pytest.MonkeyPatch, tables: Tables) -> list[str]:
    monkeypatch.setattr(gates, "Heads", lambda store, ledger: tables)
    return judge(None, None, 2, {}).promoted()  # pyright: ignore[reportArgumentType]


GOOD = {"helpfulness": (0.6, 0.7), "safety": (0.5, 0.6)}


@pytest.mark.parametrize(
    ("accuracies", "win_rates", "models"),
    [
        ({1: 0.7, 2: 0.66}, GOOD, ["helpfulness-rm", "safety-rm", "policy"]),
        ({1: 0.7, 2: 0.64}, GOOD, ["policy"]),
        ({2: 0.4}, GOOD, ["helpfulness-rm", "safety-rm", "policy"]),
        ({1: 0.7, 2: 0.7}, {**GOOD, "helpfulness": (0.5, 0.7)}, ["helpfulness-rm", "safety-rm"]),
        ({1: 0.7, 2: 0.7}, {**GOOD, "safety": (0.3, 0.49)}, ["helpfulness-rm", "safety-rm"]),
        (
            {1: 0.7, 2: 0.7},
            {**GOOD, "safety": (0.45, 0.5)},
            ["helpfulness-rm", "safety-rm", "policy"],
        ),
        ({1: 0.7, 2: 0.7}, {}, ["helpfulness-rm", "safety-rm"]),
    ],
    ids=["in its interval", "below it", "first", "a draw", "less safe", "as safe", "unmeasured"],
)
def test_what_passes(
    monkeypatch: pytest.MonkeyPatch,
    accuracies: dict[int, float],
    win_rates: dict[str, tuple[float, float]],
    models: list[str],
):
    assert promoted(monkeypatch, Tables(accuracies, win_rates)) == models


def test_the_champion_moves_forward_only(new_walk: NewWalk, recipe: Recipe):
    walk = new_walk(recipe, tracked=True)
    walk_all(walk)
    verdict = judge(walk.store, walk.ledger, 1, model_digests(recipe, walk.ledger, 1))
    assert verdict.promoted() == ["helpfulness-rm", "safety-rm", "policy"]
    record(walk.store, verdict)
    content = walk.store.read("gates/v1.json")
    assert content is not None
    assert Verdict.model_validate_json(content) == verdict

    client = walk.tracker._client
    policies = {
        version: walk.outputs[f"v{version}/{node}:model"].digest
        for version, node in ((1, "rejection_sampling"), (2, "ppo"))
    }

    def champion() -> str:
        return client.get_model_version_by_alias("policy", "champion").tags["rlhf.iteration"]

    walk.tracker.promote(1, {"policy": policies[1]})
    assert champion() == "1"
    walk.tracker.promote(2, {"policy": "0" * 64})
    assert champion() == "1", "a model that is not registered"
    walk.tracker.promote(2, {"policy": policies[2]})
    assert champion() == "2"
    walk.tracker.promote(1, {"policy": policies[1]})
    assert champion() == "2"
    assert not walk.tracker.broken
