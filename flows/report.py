"""The tables at the end of a run: how good each version is, what it cost, and where it all is."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from data_contracts.ledger import Ledger
from data_contracts.parquet import read_table
from data_contracts.ratings import Domain, Rating
from data_contracts.store import Manifest, Store
from data_contracts.tables import CONTRACTS
from flows.environment import Places
from flows.graph import nodes, policy_label, reward_model_name
from flows.models import list_models
from flows.node import BASE, NodeId, version_label
from flows.planner import head_manifest
from flows.progress import duration
from flows.recipe import Recipe
from stages.evaluate import BEFORE_PPO, STUDENT

NONE = "–"
_JUDGES = ("gold", "reward_model")
"""Whose win rates are shown: the first that a table has."""
_MEASURES = {
    "false_refusal": "Harmless prompts refused",
    "retention": "Instruction of turn 1 kept (Table 30)",
}


def print_report(
    recipe: Recipe,
    store: Store,
    ledger: Ledger,
    where: Places,
    prefect_at: str,
    console: Console,
) -> None:
    """Everything that a user asks at the end of a run."""
    reader = Heads(store, ledger)
    for table in report_tables(recipe, reader):
        console.print(table)
    lines = [*summary_lines(recipe, reader), *place_lines(store, ledger, where, prefect_at)]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


class Heads:
    """The manifests that the ledger points to, and the tables they name."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    def manifest(self, version: int, node: str) -> Manifest | None:
        """Manifest of a node's head."""
        return head_manifest(NodeId(version, node), self._store, self._ledger)

    def rows(self, version: int, node: str, role: str) -> list[dict[str, Any]]:
        """Rows of a node's table; none when the node has not run."""
        manifest = self.manifest(version, node)
        if manifest is None or role not in manifest.outputs:
            return []
        ref = manifest.outputs[role]
        contract = CONTRACTS[ref.kind.split("/")[0]]
        return read_table(self._store.local(ref), contract).to_pylist()


def report_tables(recipe: Recipe, heads: Heads) -> list[Table]:
    """The tables that there is something to say in."""
    newest = recipe.num_versions
    tables = [versions_table(newest, heads)]
    tables += rates_tables(heads.rows(newest, "evaluate", "rates"))
    accuracies = [
        row
        for domain in Domain
        for row in heads.rows(newest, reward_model_name(domain), "accuracies")
    ]
    if accuracies:
        tables += [cross_table(accuracies), ratings_table(accuracies)]
    return [*tables, seconds_table(recipe, heads)]


def versions_table(newest: int, heads: Heads) -> Table:
    """A row for each version: scores by the newest judges, and win rates against SFT."""
    evaluation = heads.manifest(newest, "evaluate")
    metrics = evaluation.metrics if evaluation else {}
    win_rates = heads.rows(newest, "evaluate", "win_rates")
    judge = next((j for j in _JUDGES if any(r["judge"] == j for r in win_rates)), _JUDGES[-1])
    table = Table(title=f"Versions, on held-out prompts, judged by the models of v{newest}")
    for header in ("version", "RM helpful", "RM safe", "gold helpful", "gold safe"):
        table.add_column(header, justify="left" if header == "version" else "right")
    table.add_column("ended", justify="right")
    for domain in Domain:
        table.add_column(f"win rate vs SFT, {domain.value} ({judge.replace('_', ' ')})")
    versions = [policy_label(version) for version in range(newest + 1)]
    for ending in (BEFORE_PPO, STUDENT):
        if any(row["version"] == versions[-1] + ending for row in win_rates):
            versions.insert(-1, versions[-1] + ending)
    for label in versions:
        scores = [
            _number(metrics.get(f"{kind}/{domain.value}/{label}"))
            for kind in ("rm", "gold")
            for domain in Domain
        ]
        ended = _number(metrics.get(f"finished/{label}"))
        table.add_row(
            label, *scores, ended, *(_win_rate(win_rates, label, d, judge) for d in Domain)
        )
    return table


def rates_tables(rates: Sequence[dict[str, Any]]) -> list[Table]:
    """A table for each measure, versions down and groups across, with 95 % intervals."""
    tables = []
    for measure, title in _MEASURES.items():
        found = {(r["version"], r["group"]): r for r in rates if r["measure"] == measure}
        groups = list(dict.fromkeys(group for _, group in found))
        table = Table(title=title)
        for header in ("version", *groups):
            table.add_column(header, justify="left" if header == "version" else "right")
        for version in dict.fromkeys(version for version, _ in found):
            table.add_row(version, *(_rate(found.get((version, group))) for group in groups))
        if found:
            tables.append(table)
    return tables


def cross_table(accuracies: Sequence[dict[str, Any]]) -> Table:
    """Each reward model's accuracy on each held-out set, with 95 % intervals (Table 7)."""
    overall = [row for row in accuracies if row["rating"] is None]
    test_sets = list(dict.fromkeys(row["test_set"] for row in overall))
    table = Table(title="Reward model accuracy on held-out pairs")
    table.add_column("model")
    for test_set in test_sets:
        table.add_column(test_set.replace("_", " "), justify="right")
    for model in dict.fromkeys(row["reward_model"] for row in overall):
        found = {row["test_set"]: row for row in overall if row["reward_model"] == model}
        table.add_row(str(model), *(_accuracy(found.get(test_set)) for test_set in test_sets))
    return table


def ratings_table(accuracies: Sequence[dict[str, Any]]) -> Table:
    """Each reward model's accuracy on its own held-out set, by rating (Table 8)."""
    table = Table(title="Accuracy on the model's own held-out set, by rating")
    table.add_column("model")
    for rating in Rating:
        table.add_column(rating.value.replace("_", " "), justify="right")
    for domain in Domain:
        own = {
            row["rating"]: row
            for row in accuracies
            if row["reward_model"] == row["test_set"] == domain.value
        }
        if own:
            table.add_row(domain.value, *(_accuracy(own.get(rating.value)) for rating in Rating))
    return table


def seconds_table(recipe: Recipe, heads: Heads) -> Table:
    """What every stage took when it was made."""
    everything = nodes(recipe)
    versions = list(range(recipe.num_versions + 1))
    table = Table(title="Time by stage")
    table.add_column("stage")
    for version in versions:
        table.add_column(version_label(version), justify="right")
    sums = dict.fromkeys(versions, 0.0)
    for name in dict.fromkeys(node.id.name for node in everything):
        cells = []
        for version in versions:
            manifest = heads.manifest(version, name)
            sums[version] += manifest.seconds if manifest else 0.0
            cells.append(duration(manifest.seconds) if manifest else "")
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("sum", *(duration(sums[version]) for version in versions))
    return table


def summary_lines(recipe: Recipe, heads: Heads) -> Iterable[str]:
    """Bits per byte of the base model, and the gold gain of the newest version."""
    pretrain = heads.manifest(BASE, "pretrain")
    metrics = pretrain.metrics if pretrain else {}
    if "bits_per_byte_after" in metrics:
        yield (
            f"Bits per byte of held-out text: {metrics['bits_per_byte_before']:.3f} before, "
            f"{metrics['bits_per_byte_after']:.3f} after pretraining"
        )
    newest = policy_label(recipe.num_versions)
    evaluation = heads.manifest(recipe.num_versions, "evaluate")
    metrics = evaluation.metrics if evaluation else {}
    win_rates = heads.rows(recipe.num_versions, "evaluate", "win_rates")
    for domain in Domain:
        for judge in _JUDGES:
            rate = _win_rate(win_rates, newest, domain, judge, newest + BEFORE_PPO)
            if rate != NONE:
                by = judge.replace("_", " ")
                yield f"PPO of {newest} over its rejection sampling, {domain.value} ({by}): {rate}"
    for domain in Domain:
        gain = metrics.get(f"gold_gain/{domain.value}")
        if gain is not None:
            low = metrics[f"gold_gain_low/{domain.value}"]
            high = metrics[f"gold_gain_high/{domain.value}"]
            yield (
                f"Gold {domain.value} of {newest} over SFT: {gain:+.3f} "
                f"(95 % interval {low:+.3f} to {high:+.3f})"
            )


def place_lines(store: Store, ledger: Ledger, where: Places, prefect_at: str) -> Iterable[str]:
    """Where the databases and the models are, and how to look at them."""
    yield ""
    yield f"Prefect database: {prefect_at}"
    yield f"MLflow store:     {where.mlflow}"
    for row in list_models(store, ledger):
        label = "base" if row.version == BASE else f"v{row.version}"
        yield f"Model {label + ' ' + row.name:<20} {row.path}"
    yield f"See `rlhf status --home {where.home}` and `rlhf models --home {where.home} --json`"


def _win_rate(
    rows: Sequence[dict[str, Any]],
    version: str,
    domain: Domain,
    judge: str,
    opponent: str = policy_label(BASE),
) -> str:
    wanted = (version, opponent, domain.value, judge)
    for row in rows:
        if (row["version"], row["opponent"], row["domain"], row["judge"]) == wanted:
            return f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return NONE


def _rate(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    return f"{row['rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _accuracy(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    return f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] n={row['num_pairs']}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
