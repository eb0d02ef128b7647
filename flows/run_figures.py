"""The figures of a run's page; the numbers of the paper's figures that they follow are theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from annotation.evaluation.strengths import Strength
from data_contracts.ratings import Domain
from flows.graph import policy_label
from flows.node import BASE
from flows.pages.figures import Drawing, draw
from flows.run_record import GOLD, REWARD_MODEL, RunRecord
from stages.models.comparison import Z_95

_SFT = policy_label(BASE)
_MARKERS = {Domain.helpfulness: "o", Domain.safety: "s"}


def judge_name(judge: str) -> str:
    """A judge as a reader calls it."""
    return {GOLD: "gold judge", REWARD_MODEL: "reward models"}.get(judge, judge)


def win_rates_by_version(record: RunRecord) -> Drawing:
    """Win rate over SFT, a panel for each judge (Figure 11)."""

    judges = _judges_of_sft(record)

    def plot(panels: Any) -> None:
        for axes, judge in zip(np.atleast_1d(panels), judges, strict=True):
            for domain in Domain:
                rows = [record.win_rate(v, _SFT, domain, judge) for v in record.labels]
                _intervals(axes, [row for row in rows if row], "win_rate", domain)
            axes.axhline(0.5, color="grey", linewidth=0.8)
            axes.set(ylim=(0, 1), title=f"by the {_titled(judge)}", ylabel="win rate over SFT")
            axes.legend(loc="lower right")

    return _panels(plot, len(judges))


def _judges_of_sft(record: RunRecord) -> list[str]:
    """Those who have compared any version with SFT."""
    return [j for j in record.judges if any(_over_sft(record, v, j) for v in record.labels)]


def _over_sft(record: RunRecord, version: str, judge: str) -> list[dict[str, Any]]:
    found = (record.win_rate(version, _SFT, domain, judge) for domain in Domain)
    return [row for row in found if row is not None]


def plane(record: RunRecord) -> Drawing:
    """Harmlessness against helpfulness, each version a point (Figure 11 as the paper has it)."""

    judges = _judges_of_sft(record)

    def plot(panels: Any) -> None:
        for axes, judge in zip(np.atleast_1d(panels), judges, strict=True):
            points = [("SFT", 0.5, 0.5)]
            for version in record.labels:
                pair = [
                    record.win_rate(version, _SFT, d, judge)
                    for d in (Domain.safety, Domain.helpfulness)
                ]
                if all(pair):
                    points.append((version.upper(), *(row["win_rate"] for row in pair if row)))
            _path(axes, points)
            axes.axhline(0.5, color="grey", linewidth=0.8)
            axes.axvline(0.5, color="grey", linewidth=0.8)
            axes.set(
                xlabel="safety: win rate over SFT",
                ylabel="helpfulness: win rate over SFT",
                title=f"by the {_titled(judge)}",
            )
            axes.margins(0.18)

    return _panels(plot, len(judges))


def accuracy_by_version(record: RunRecord) -> Drawing:
    """Each reward model on its own held-out set, as batches of preferences come in (Figure 6)."""

    def plot(axes: Any) -> None:
        for domain in Domain:
            rows = []
            for version in record.policies:
                for row in record.accuracies(version, domain):
                    if row["rating"] is None and row["test_set"] == domain:
                        rows.append(row | {"version": policy_label(version)})
            _intervals(axes, rows, "accuracy", domain)
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set(ylim=(0, 1), xlabel="preferences up to", ylabel="accuracy on held-out pairs")
        axes.legend(loc="best")

    return draw(plot, size=(6.5, 3.4))


def calibration(rows: Sequence[dict[str, Any]]) -> Drawing:
    """What reward models predict against what people said (Figure 29)."""

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        for model, event in dict.fromkeys((row["reward_model"], row["event"]) for row in rows):
            own = [row for row in rows if (row["reward_model"], row["event"]) == (model, event)]
            points = [row | {"version": row["predicted"]} for row in own]
            _errorbar(axes, points, "observed", f"{model} model: {event}", "o")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted", ylabel="share that was so")
        axes.legend(loc="upper left")

    return draw(plot, size=(5.0, 4.2))


def scores_by_version(record: RunRecord) -> Drawing:
    """Mean score by version: what training saw on the left, what it did not on the right."""
    has_gold = any(row["gold_helpfulness"] is not None for row in record.evaluations)

    def plot(panels: Any) -> None:
        columns = ["{}_score", "gold_{}"][: 1 + has_gold]
        titles = ("score of the newest reward models", "score of the gold judge")
        for axes, column, title in zip(np.atleast_1d(panels), columns, titles, strict=False):
            for domain in Domain:
                means = [
                    mean_of(record, version, domain, column.format(domain.value))
                    for version in record.labels
                ]
                _intervals(axes, [mean for mean in means if mean], "mean", domain)
            axes.set(title=title, ylabel="mean")
            axes.legend(loc="best")

    return _panels(plot, 1 + has_gold)


def mean_of(record: RunRecord, version: str, domain: Domain, column: str) -> dict[str, Any] | None:
    """Mean of a score on a domain's prompts, with its normal 95 % interval; None without rows."""
    values = np.array(
        [
            row[column]
            for row in record.evaluations
            if row["version"] == version and row["domain"] == domain and row[column] is not None
        ]
    )
    if not len(values):
        return None
    mean = float(values.mean())
    half = Z_95 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"version": version, "mean": mean, "low": mean - half, "high": mean + half}


def elo(found: Mapping[str, Sequence[Strength]]) -> Drawing:
    """Strength of each version, a series for each judge and domain."""

    def plot(axes: Any) -> None:
        for label, series in found.items():
            rows = [
                {"version": s.version, "elo": s.elo, "low": s.low, "high": s.high} for s in series
            ]
            _errorbar(axes, rows, "elo", label, "o")
        axes.set(ylabel="Elo, SFT at 1000")
        axes.legend(loc="best")

    return draw(plot, size=(6.5, 3.4))


def ppo_curves(curves: dict[str, list[dict[str, Any]]]) -> Drawing:
    """Reward and KL to the reference over PPO's iterations, for each version that has them."""

    def plot(panels: Any) -> None:
        for axes, (name, label) in zip(
            panels,
            (("ppo/reward", "mean reward of a batch"), ("ppo/kl", "KL to the reference, nats")),
            strict=True,
        ):
            for version, rows in curves.items():
                steps = [row["step"] for row in rows if name in row]
                axes.plot(steps, [row[name] for row in rows if name in row], label=version)
            axes.set(xlabel="iteration", title=label)
            axes.legend(loc="best")

    return _panels(plot, 2)


def loss_curves(curves: dict[str, list[dict[str, Any]]]) -> Drawing:
    """Training loss by step, a panel for each stage."""

    def plot(panels: Any) -> None:
        for axes, (name, rows) in zip(np.atleast_1d(panels), curves.items(), strict=True):
            axes.plot([row["step"] for row in rows], [row["train/loss"] for row in rows])
            axes.set(xlabel="step", title=f"{name}: training loss")

    return _panels(plot, len(curves))


def _panels(plot: Any, count: int) -> Drawing:
    return draw(plot, size=(6.5, 3.4) if count == 1 else (4.6 * count, 3.6), columns=count)


def _intervals(axes: Any, rows: list[dict[str, Any]], column: str, domain: Domain) -> None:
    _errorbar(axes, rows, column, domain.value, _MARKERS[domain])


def _errorbar(axes: Any, rows: list[dict[str, Any]], column: str, label: str, marker: str) -> None:
    if not rows:
        return
    values = np.array([row[column] for row in rows])
    below = values - [row["low"] for row in rows]
    above = [row["high"] for row in rows] - values
    axes.errorbar(
        [row["version"] for row in rows],
        values,
        yerr=np.maximum(np.stack([below, above]), 0),
        marker=marker,
        label=label,
    )


def _path(axes: Any, points: list[tuple[str, float, float]]) -> None:
    names, xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, marker="o")
    for name, x, y in zip(names, xs, ys, strict=True):
        axes.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points")


def _titled(judge: str) -> str:
    """A name as matplotlib sets it: a dollar would begin a formula."""
    return judge_name(judge).replace("$", r"\$")
