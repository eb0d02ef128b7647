"""The part of a run's page that says how good its versions and reward models are."""

from collections.abc import Iterator, Sequence
from typing import Any

from annotation.evaluation.strengths import Game, Strength, strengths
from data_contracts.ratings import Domain, Rating
from flows import run_figures as figures
from flows.graph import policy_label
from flows.judgements import all_games
from flows.node import BASE, version_label
from flows.pages.page import Block, Cell, Figure, Mark, Table, Text
from flows.run_figures import judge_name, mean_of
from flows.run_record import GOLD, REWARD_MODEL, RunRecord

NONE = "–"
_SFT = policy_label(BASE)


def versions(record: RunRecord) -> Iterator[Block]:
    """Win rates of every version, and Figure 11."""
    if not record.labels:
        return
    for judge in record.judges:
        rows = [row for v in record.all_labels[1:] for row in _rows_of(record, v, judge)]
        if rows:
            yield Table(
                ["version", "against", *(d.value for d in Domain)],
                rows,
                f"Win rates, judged by the {judge_name(judge)}: "
                "wins/ties/losses, rate with Wilson's 95 % interval, ties half",
                text_columns=(1,),
            )
    yield Figure(
        figures.win_rates_by_version(record),
        "Win rate over SFT by version with 95 % intervals (the paper's Figure 11). The gold judge "
        "is seen by no training stage: reward models up and gold down would be reward hacking."
        if GOLD in record.judges
        else "Win rate over SFT by version with 95 % intervals (the paper's Figure 11).",
    )
    yield Figure(
        figures.plane(record),
        "The same as the paper draws it: harmlessness to the right, helpfulness up.",
    )


def _rows_of(record: RunRecord, version: str, judge: str) -> Iterator[list[Cell]]:
    met = dict.fromkeys(
        row["opponent"]
        for row in record.win_rates
        if (row["version"], row["judge"]) == (version, judge)
    )
    for opponent in met:
        found = (record.win_rate(version, opponent, domain, judge) for domain in Domain)
        yield [version, opponent, *(_counts(row) for row in found)]


def strength_of_versions(record: RunRecord) -> Iterator[Block]:
    """Bradley-Terry over all pairs of versions on the same prompts."""
    found = {
        f"{domain.value}, {judge_name(judge)}": strength
        for judge, column in ((GOLD, "gold_{}"), (REWARD_MODEL, "{}_score"))
        for domain in Domain
        if (strength := _strength(_games(record, domain, column.format(domain.value))))
    }
    for (judge, domain), games in all_games(record.judgements).items():
        if strength := _strength(games):
            found[f"{domain}, {judge}"] = strength
    if not found:
        return
    rows = [
        [label, *(_elo(series, version) for version in record.all_labels)]
        for label, series in found.items()
    ]
    yield Table(
        ["judged by", *record.all_labels],
        rows,
        "Bradley-Terry strength on Elo's scale, 95 % intervals by bootstrap over prompts",
    )
    yield Figure(
        figures.elo(found),
        "Every pair of versions is compared on the same held-out prompts; 400 points are odds of "
        "10 to 1. A response that was cut off loses to every one that ended.",
    )


def _strength(games: list[Game]) -> list[Strength]:
    """None where SFT is not among the versions, or where some have never met."""
    try:
        return strengths(games, _SFT, num_resamples=400) if games else []
    except ValueError:
        return []


def _games(record: RunRecord, domain: Domain, column: str) -> list[Game]:
    by_prompt: dict[str, dict[str, tuple[bool, float]]] = {}
    for row in record.evaluations:
        if row["domain"] == domain and row[column] is not None:
            ended = row["finished"] or column.startswith(GOLD)
            by_prompt.setdefault(row["prompt_id"], {})[row["version"]] = (ended, row[column])
    return [
        Game(prompt, a, b, 0.5 if scores[a] == scores[b] else float(scores[a] > scores[b]))
        for prompt, scores in by_prompt.items()
        for i, a in enumerate(record.all_labels)
        for b in record.all_labels[:i]
        if a in scores and b in scores
    ]


def judgements(record: RunRecord) -> Iterator[Block]:
    """Beside the win rates above: the scale, agreement, and what became of each request."""
    rows: list[list[Cell]] = []
    for judgement in record.judgements:
        for found in judgement.summaries:
            scale = found["scale"]
            rows.append(
                [
                    judgement.judge,
                    f"{judgement.version} against {judgement.opponent}",
                    found["row"]["domain"],
                    f"[{found['bootstrap']['low']:.3f}, {found['bootstrap']['high']:.3f}]",
                    f"{scale['mean']:+.2f} [{scale['low']:+.2f}, {scale['high']:+.2f}]",
                    _coefficient(found["ac1"]),
                    _coefficient(found["ac2"]),
                ]
            )
    if not rows:
        return
    headers = ["judge", "versions", "domain", "win rate, bootstrap", "mean of −3 … 3"]
    yield Table(
        [*headers, "Gwet's AC1", "Gwet's AC2"],
        rows,
        "Win rates are with the versions; here their bootstrap intervals, the 7-point scale, and "
        "how far raters agree",
        text_columns=(1, 2),
    )
    for judgement in record.judgements:
        told = ", ".join(
            f"{name.removeprefix('num_').replace('_', ' ')} {value:,.4g}"
            for name, value in judgement.counts.items()
            if value is not None
        )
        versions = f"{judgement.version} against {judgement.opponent}"
        yield Text(f"{judgement.judge}, {versions}, {judgement.at}: {told}.")


def _coefficient(found: dict[str, Any] | None) -> str:
    if found is None:
        return NONE
    return f"{found['coefficient']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def scores(record: RunRecord) -> Iterator[Block]:
    """Mean scores by version and task family, and shares of answers."""
    if not record.labels:
        return
    columns = {
        f"{who} {domain.value}": (domain, column.format(domain.value))
        for who, column in (("RM", "{}_score"), ("gold", "gold_{}"))
        for domain in Domain
    }
    rows = []
    for version in record.all_labels:
        means = [mean_of(record, version, domain, column) for domain, column in columns.values()]
        ended = [row["finished"] for row in record.evaluations if row["version"] == version]
        cells = [f"{m['mean']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" if m else NONE for m in means]
        rows.append([version, *cells, f"{sum(ended) / len(ended):.1%}"])
    yield Table(
        ["version", *columns, "ended"],
        rows,
        f"Mean score on held-out prompts; reward models of v{record.newest}",
    )
    yield Figure(
        figures.scores_by_version(record), "Mean score by version, with normal 95 % intervals."
    )
    families = sorted(
        {
            r["category"]
            for r in record.evaluations
            if r["category"] and r["gold_safety"] is not None
        }
    )
    if families:
        yield Table(
            ["task family", *record.labels],
            [[family, *_family(record, family)] for family in families],
            "Gold score by task family: an average hides the skill that was lost",
        )
    counted = {(r["measure"], r["group"], r["version"]): r for r in record.rates}
    if counted:
        versions = list(dict.fromkeys(row["version"] for row in record.rates))
        yield Table(
            ["share of answers", *versions],
            [
                [f"{measure.replace('_', ' ')}, {group}"]
                + [_share(counted.get((measure, group, version))) for version in versions]
                for measure, group in dict.fromkeys((m, g) for m, g, _ in counted)
            ],
            "Instructions of the first turn that are kept (Table 30), and harmless prompts refused",
        )


def _share(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    return f"{row['rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}] n={row['num_answers']}"


def _family(record: RunRecord, family: str) -> Iterator[str]:
    for version in record.labels:
        values = [
            row[f"gold_{row['domain']}"]
            for row in record.evaluations
            if (row["version"], row["category"]) == (version, family)
        ]
        yield f"{sum(values) / len(values):.3f}" if values else NONE


def reward_models(record: RunRecord) -> Iterator[Block]:
    """Accuracy by set, by rating and by version, and calibration."""
    judged = [v for v in record.policies if any(record.accuracies(v, d) for d in Domain)]
    if not judged:
        return
    newest = judged[-1]
    rows = [row for domain in Domain for row in record.accuracies(newest, domain)]
    overall = [row for row in rows if row["rating"] is None]
    test_sets = list(dict.fromkeys(row["test_set"] for row in overall))
    models = list(dict.fromkeys(row["reward_model"] for row in overall))
    found = {(r["reward_model"], r["test_set"], r["rating"]): r for r in rows}
    yield Table(
        ["model", *(name.replace("_", " ") for name in test_sets)],
        [[m, *(_accuracy(found.get((m, t, None))) for t in test_sets)] for m in models],
        f"Accuracy of v{newest}'s reward models on each held-out set (Table 7)",
    )
    yield Table(
        ["model", *(rating.value.replace("_", " ") for rating in Rating)],
        [[m, *(_accuracy(found.get((m, m, rating.value))) for rating in Rating)] for m in models],
        "On its own set, by how sure the annotators were (Table 8)",
    )
    yield Figure(
        figures.accuracy_by_version(record),
        "Accuracy on the model's own held-out set as preferences are added (Figure 6). Each "
        "version's set holds all batches so far, so it grows harder as the versions come closer.",
    )
    yield from _calibration(record, newest)


def _calibration(record: RunRecord, version: int) -> Iterator[Block]:
    rows = [row for domain in Domain for row in record.calibration(version, domain)]
    if rows:
        yield Figure(
            figures.calibration(rows),
            f"Calibration of v{version}'s reward models on their own held-out sets (Figure 29): "
            "how often the response that they prefer was chosen, or the one they call safe is.",
        )


def gates(record: RunRecord) -> Iterator[Block]:
    """What was measured against which limit."""
    rows = []
    for version in record.policies:
        verdict = record.verdict(version)
        for gate in verdict.gates if verdict else ():
            mark = Mark("passed", "good") if gate.passed else Mark("failed", "bad")
            figures_ = f"{gate.measured:.3f}", f"{gate.limit:.3f}"
            rows.append([version_label(version), gate.model, gate.condition, *figures_, mark])
    if rows:
        yield Text("A model becomes the registry's champion when all of its gates are passed.")
        headers = ["version", "model", "condition", "measured", "limit", "verdict"]
        yield Table(headers, rows, text_columns=(1, 2, 5))


def rate(row: dict[str, Any]) -> str:
    """A win rate with its interval."""
    return f"{row['win_rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


def _counts(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    counts = f"{row['wins']}/{row['ties']}/{row['losses']}"
    return f"{counts}  {row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _accuracy(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    return f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] n={row['num_pairs']}"


def _elo(series: Sequence[Strength], version: str) -> str:
    for found in series:
        if found.version == version:
            if version == _SFT:
                return f"{found.elo:.0f}"
            return f"{found.elo:.0f} [{found.low:.0f}, {found.high:.0f}]"
    return NONE
