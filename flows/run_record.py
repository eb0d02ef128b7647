"""What a home recorded of its run, as the report's page reads it: from the ledger alone."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data_contracts.ledger import Ledger
from data_contracts.parquet import read_table
from data_contracts.ratings import Domain
from data_contracts.store import Manifest, Store
from data_contracts.tables import CONTRACTS
from flows.gates import Verdict, find_verdict
from flows.graph import policy_label, reward_model_name
from flows.judgements import Judgement, read_judgements, read_win_rates
from flows.node import BASE
from stages.runtime.workdir import read_metrics

GOLD, REWARD_MODEL = "gold", "reward_model"


@dataclass
class RunRecord:
    """The heads of a home, with the tables and metrics behind them."""

    store: Store
    ledger: Ledger
    _manifests: dict[tuple[int, str], Manifest | None] = field(default_factory=dict)

    @cached_property
    def versions(self) -> list[int]:
        """Every version that has a head, the base first."""
        return self.ledger.versions()

    def manifest(self, version: int, node: str) -> Manifest | None:
        """A node's newest run as it was recorded; files are verified when they are read."""
        place = (version, node)
        if place not in self._manifests:
            key = self.ledger.head(version, node)
            self._manifests[place] = self.store.recorded(key) if key else None
        return self._manifests[place]

    def nodes(self, version: int) -> list[tuple[str, Manifest]]:
        """A version's finished nodes, in the order in which they ended."""
        found = [(node, self.manifest(version, node)) for node in self.ledger.nodes(version)]
        done = [(node, manifest) for node, manifest in found if manifest is not None]
        return sorted(done, key=lambda pair: (pair[1].finished_at, pair[0]))

    def table(self, version: int, node: str, role: str) -> list[dict[str, Any]]:
        """Rows of a node's table, none when it has not run."""
        manifest = self.manifest(version, node)
        if manifest is None or role not in manifest.outputs:
            return []
        ref = manifest.outputs[role]
        return read_table(self.store.local(ref), CONTRACTS[ref.kind.partition("/")[0]]).to_pylist()

    def curve(self, version: int, node: str) -> list[dict[str, Any]]:
        """Metrics of every step of a node's training; none where its work folder is gone."""
        manifest = self.manifest(version, node)
        return read_metrics(self.store, manifest.key) if manifest else []

    @cached_property
    def newest(self) -> int | None:
        """The newest version that has been evaluated: its judges score all versions alike."""
        evaluated = [v for v in self.versions if self.manifest(v, "evaluate")]
        return max(evaluated, default=None)

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Every version's responses to the same held-out prompts, from the newest evaluation."""
        return [] if self.newest is None else self.table(self.newest, "evaluate", "evaluations")

    @cached_property
    def labels(self) -> list[str]:
        """Versions of the newest evaluation, sft first."""
        present = {row["version"] for row in self.evaluations}
        return [
            policy_label(v) for v in range((self.newest or 0) + 1) if policy_label(v) in present
        ]

    @cached_property
    def all_labels(self) -> list[str]:
        """The same with models on the way, such as the newest one before PPO, at their places."""
        return list(dict.fromkeys(row["version"] for row in self.evaluations))

    @cached_property
    def rates(self) -> list[dict[str, Any]]:
        """Shares of answers that the newest evaluation counted: retention, false refusals."""
        return [] if self.newest is None else self.table(self.newest, "evaluate", "rates")

    @cached_property
    def win_rates(self) -> list[dict[str, Any]]:
        """Of the newest evaluation, and of every judgement by people or outside models."""
        own = [] if self.newest is None else self.table(self.newest, "evaluate", "win_rates")
        return own + read_win_rates(self.store)

    @cached_property
    def judgements(self) -> list[Judgement]:
        """What `rlhf evaluation` has brought into the home."""
        return read_judgements(self.store)

    @cached_property
    def judges(self) -> list[str]:
        """Whoever has judged: the gold judge first, the reward models, then the others."""
        found = dict.fromkeys(row["judge"] for row in self.win_rates)
        return sorted(found, key=lambda judge: (judge != GOLD, judge != REWARD_MODEL, judge))

    def win_rate(
        self, version: str, opponent: str, domain: Domain, judge: str
    ) -> dict[str, Any] | None:
        """One comparison, None where there is none."""
        wanted = (version, opponent, domain.value, judge)
        for row in self.win_rates:
            if (row["version"], row["opponent"], row["domain"], row["judge"]) == wanted:
                return row
        return None

    def accuracies(self, version: int, domain: Domain) -> list[dict[str, Any]]:
        """Of a version's reward model on every held-out set."""
        return self.table(version, reward_model_name(domain), "accuracies")

    def calibration(self, version: int, domain: Domain) -> list[dict[str, Any]]:
        """Of a version's reward model on its own held-out set, by bins of its prediction."""
        rows = self.table(version, reward_model_name(domain), "calibration")
        return [row for row in rows if row["test_set"] == domain]

    def verdict(self, version: int) -> Verdict | None:
        """The gates of a version, when they have been judged."""
        return find_verdict(self.store, version)

    @property
    def policies(self) -> list[int]:
        """Versions beside the base."""
        return [version for version in self.versions if version != BASE]
