"""`rlhf report`: one page about a run, for whoever has to decide on its newest version."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from annotation.evaluation.strengths import Game, Strength, strengths
from annotation.evaluation.verdicts import digest_order
from data_contracts.ratings import Domain, Rating
from data_contracts.store import Manifest
from flows import run_figures as figures
from flows.environment import Places
from flows.graph import BASE, policy_label, version_label
from flows.judgements import all_games
from flows.models import list_models
from flows.pages.page import (
    Answer,
    Block,
    Cell,
    Facts,
    Figure,
    Items,
    Link,
    Mark,
    Page,
    Section,
    SideBySide,
    Table,
    Text,
)
from flows.progress import duration
from flows.run_figures import judge_name, mean_of
from flows.run_record import GOLD, REWARD_MODEL, RunRecord

NONE = "–"
SAMPLES_OF_A_DOMAIN = 6
MOST_ANSWERS = 4
"""Versions side by side: the first, the last, and what fits between."""
_SFT = policy_label(BASE)


def run_page(record: RunRecord, product: str, where: Places) -> Page:
    """The page of a home in which something has run."""
    sections = [
        Section(title, blocks)
        for title, blocks in (
            ("Versions", list(_versions(record))),
            ("Strength", list(_strengths(record))),
            ("People and outside judges", list(_judgements(record))),
            ("Scores", list(_scores(record))),
            ("Reward models", list(_reward_models(record))),
            ("Gates", list(_gates(record))),
            ("Samples", list(_samples(record))),
            ("Training", list(_training(record))),
            ("Time and cost", list(_costs(record))),
            ("Where things are", list(_places(record, where))),
        )
        if blocks
    ]
    return Page(f"{product}: {_reach(record)}", _lead(record), sections)


def _reach(record: RunRecord) -> str:
    newest = max(record.policies, default=None)
    return "the base" if newest is None else f"RLHF-V1 to V{newest}" if newest > 1 else "RLHF-V1"


def _lead(record: RunRecord) -> str:
    manifests = [m for version in record.versions for _, m in record.nodes(version)]
    ended = max(m.finished_at for m in manifests)
    seconds = sum(m.seconds for m in manifests)
    says = f"{len(manifests)} stages, {duration(seconds)} of work, the last one done at {ended}."
    if record.newest is None:
        return f"{says} No version has been evaluated yet."
    for judge in record.judges[:1]:
        rates = [
            (domain, record.win_rate(policy_label(record.newest), _SFT, domain, judge))
            for domain in Domain
        ]
        told = [f"{_rate(row)} on {domain.value}" for domain, row in rates if row]
        if told:
            says += (
                f"\n\nV{record.newest} is preferred to SFT in {' and '.join(told)}, "
                f"by the {judge_name(judge)}; 95 % intervals in brackets."
            )
    return says


def _versions(record: RunRecord) -> Iterator[Block]:
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


def _strengths(record: RunRecord) -> Iterator[Block]:
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


def _judgements(record: RunRecord) -> Iterator[Block]:
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


def _scores(record: RunRecord) -> Iterator[Block]:
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


def _reward_models(record: RunRecord) -> Iterator[Block]:
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


def _gates(record: RunRecord) -> Iterator[Block]:
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


def _samples(record: RunRecord) -> Iterator[Block]:
    shown = _shown(record.labels)
    if not shown:
        return
    yield Text(
        "Held-out prompts in the order of a digest of their ids, one of each task family in turn: "
        "nobody chose them. Responses as they were sampled."
    )
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for row in record.evaluations:
        answers.setdefault(row["prompt_id"], {})[row["version"]] = row
    for domain in Domain:
        for prompt_id in _sampled(record, domain):
            rows = [answers[prompt_id][v] for v in shown if v in answers[prompt_id]]
            yield SideBySide(
                _dialogue(rows[0]["messages"]),
                [Answer(row["version"], row["response"], _note(row)) for row in rows],
                ", ".join(filter(None, (domain.value, rows[0]["category"]))),
            )


def _shown(labels: list[str]) -> list[str]:
    """At most MOST_ANSWERS versions: the first two and the last two."""
    if len(labels) <= MOST_ANSWERS:
        return labels
    return [*labels[: MOST_ANSWERS // 2], *labels[-(MOST_ANSWERS // 2) :]]


def _sampled(record: RunRecord, domain: Domain) -> list[str]:
    families: dict[str, list[str]] = {}
    prompts = {
        row["prompt_id"]: row["category"] or ""
        for row in record.evaluations
        if row["domain"] == domain
    }
    for prompt_id in digest_order(prompts):
        families.setdefault(prompts[prompt_id], []).append(prompt_id)
    most = max(map(len, families.values()), default=0)
    in_turn = [f[i] for i in range(most) for _, f in sorted(families.items()) if i < len(f)]
    return in_turn[:SAMPLES_OF_A_DOMAIN]


def _note(row: dict[str, Any]) -> str:
    domain = row["domain"]
    parts = [f"RM {row[f'{domain}_score']:.2f}"]
    if row[f"gold_{domain}"] is not None:
        parts.append(f"gold {row[f'gold_{domain}']:.2f}")
    return ", ".join(parts if row["finished"] else [*parts, "cut off"])


def _dialogue(messages: Sequence[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _training(record: RunRecord) -> Iterator[Block]:
    losses = {
        node: rows
        for node in ("pretrain", "sft")
        if (rows := [r for r in record.curve(BASE, node) if "train/loss" in r])
    }
    if losses:
        yield Figure(figures.loss_curves(losses), "Training loss by step.")
    ppo = {version_label(v): record.curve(v, "ppo") for v in record.policies}
    ppo = {v: rows for v, rows in ppo.items() if any("ppo/reward" in r for r in rows)}
    if ppo:
        yield Figure(
            figures.ppo_curves(ppo), "PPO: reward before the KL penalty, and the distance walked."
        )


def _costs(record: RunRecord) -> Iterator[Block]:
    order = dict.fromkeys(node for v in record.versions for node, _ in record.nodes(v))
    cells = {(v, node): m for v in record.versions for node, m in record.nodes(v)}
    sums = [duration(sum(m.seconds for _, m in record.nodes(v))) for v in record.versions]
    rows = [[node, *(_took(cells.get((v, node))) for v in record.versions)] for node in order]
    headers = ["stage", *map(version_label, record.versions)]
    yield Table(headers, [*rows, ["sum", *sums]], "Time of every stage when it was made")
    measured = [row for v in record.versions for row in _speeds(record, v)]
    if measured:
        yield Table(
            ["stage", "version", "steps", "tokens/s", "MFU", "kWh", "kgCO2eq"],
            measured,
            "Measured while training (median tokens/s and MFU, sums of energy)",
            text_columns=(1,),
        )
        if all(row[5] == NONE for row in measured):
            yield Text(
                "Energy is recorded where NVML counts it (the extra `gpu`); no card did in this "
                "run. `rlhf plan --gpus` estimates it for cards that you do not have."
            )


def _speeds(record: RunRecord, version: int) -> Iterator[list[Cell]]:
    for node, _ in record.nodes(version):
        rows = record.curve(version, node)
        speeds = _column(rows, "throughput/tokens_per_second")
        if speeds:
            mfu = _column(rows, "throughput/mfu")
            energy = (_column(rows, name) for name in ("energy/kwh", "energy/kgco2eq"))
            yield [
                node,
                version_label(version),
                f"{len(rows):,}",
                f"{_median(speeds):,.0f}",
                f"{_median(mfu):.1%}" if mfu else NONE,
                *(f"{sum(values):.4g}" if values else NONE for values in energy),
            ]


def _column(rows: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _places(record: RunRecord, where: Places) -> Iterator[Block]:
    commits = {m.git_commit for v in record.versions for _, m in record.nodes(v) if m.git_commit}
    facts: dict[str, Cell] = {"home": where.home, "MLflow": _address(where.mlflow)}
    if commits:
        facts["code"] = ", ".join(sorted(commit[:12] for commit in commits))
    yield Facts(facts)
    yield Table(
        ["model", "version", "digest", "folder"],
        [
            [row.name, version_label(row.version), row.digest[:12], row.path]
            for row in list_models(record.store, record.ledger)
        ],
        "Models, in Hugging Face layout",
        text_columns=(1, 2, 3),
    )
    yield Items(
        [
            f"`rlhf chat --version V{max(record.policies, default=0)} --home {where.home}` "
            "talks to the newest policy",
            f"`rlhf history --home {where.home}` lists what each stage has stood on",
        ]
        if record.policies
        else [f"`rlhf status --home {where.home}` shows the stages"]
    )


def _address(address: str) -> Cell:
    return Link(address, address) if address.startswith("http") else address


def _took(manifest: Manifest | None) -> str:
    return duration(manifest.seconds) if manifest else ""


def _rate(row: dict[str, Any]) -> str:
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
