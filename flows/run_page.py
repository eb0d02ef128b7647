"""`rlhf report`: one page about a run, for whoever has to decide on its newest version."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from annotation.evaluation.verdicts import digest_order
from data_contracts.ratings import Domain
from data_contracts.store import Manifest
from flows import run_figures as figures
from flows.environment import Places
from flows.graph import policy_label
from flows.models import list_models
from flows.node import BASE, version_label
from flows.pages.page import (
    Answer,
    Block,
    Cell,
    Facts,
    Figure,
    Items,
    Link,
    Page,
    Section,
    SideBySide,
    Table,
    Text,
)
from flows.progress import duration
from flows.run_figures import judge_name
from flows.run_quality import (
    NONE,
    gates,
    judgements,
    rate,
    reward_models,
    scores,
    strength_of_versions,
    versions,
)
from flows.run_record import RunRecord

SAMPLES_OF_A_DOMAIN = 6
MOST_ANSWERS = 4
"""Versions side by side: the first, the last, and what fits between."""
_SFT = policy_label(BASE)


def run_page(record: RunRecord, product: str, where: Places) -> Page:
    """The page of a home in which something has run."""
    sections = [
        Section(title, blocks)
        for title, blocks in (
            ("Versions", list(versions(record))),
            ("Strength", list(strength_of_versions(record))),
            ("People and outside judges", list(judgements(record))),
            ("Scores", list(scores(record))),
            ("Reward models", list(reward_models(record))),
            ("Gates", list(gates(record))),
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
        told = [f"{rate(row)} on {domain.value}" for domain, row in rates if row]
        if told:
            says += (
                f"\n\nV{record.newest} is preferred to SFT in {' and '.join(told)}, "
                f"by the {judge_name(judge)}; 95 % intervals in brackets."
            )
    return says


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
