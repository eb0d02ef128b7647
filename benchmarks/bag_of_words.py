"""Do a home's reward models rank held-out pairs better than the words of the answers alone do?

    python -m benchmarks.bag_of_words --home HOME                # the newest version that has both
    python -m benchmarks.bag_of_words --home HOME --version 1

The baselines are logistic regressions on the difference between both answers' word counts and
between their tf-idf weights, with scikit-learn's defaults but for the intercept: there is none,
since neither side of a pair comes first. They learn from the very pairs that were there for the
reward model, and are asked about the same held-out ones. Prints each accuracy and, pair by pair,
the reward model's lead over it with its 95 % interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from data_contracts.errors import UserError
from data_contracts.ledger import Ledger
from data_contracts.parquet import read_table
from data_contracts.ratings import Domain
from data_contracts.store import Store
from data_contracts.tables import PREFERENCES
from flows.cli_options import HomeOption, exists, paragraphs, wide_console
from flows.environment import places
from flows.graph import reward_model_name
from kernels.hf_layout import load_reward
from stages.models.comparison import Difference, paired_difference
from stages.models.pairs import render_pairs, score_pairs, when_held_out
from stages.reward_model import Config
from stages.runtime.distributed import Rank
from stages.text.tokenizer import Tokenizer

ALONE = Rank(0, 1, 0, torch.device("cpu"))

VECTORIZERS = {"word counts": CountVectorizer, "tf-idf": TfidfVectorizer}

Points = NDArray[np.float64]
"""One per held-out pair: 1 where the answer that people chose scores higher, 0.5 for a tie."""


@dataclass(frozen=True)
class Comparison:
    """A reward model beside one baseline, on the same held-out pairs."""

    domain: Domain
    baseline: str
    num_pairs: int
    own: float
    """Accuracy of the reward model; a tie counts as half right."""
    theirs: float
    lead: Difference


VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="1 for V1; without it the newest.")
]


@paragraphs
def main(home: HomeOption = None, version: VersionOption = None) -> None:
    """Both reward models of a version beside logistic regressions on the words of the answers."""
    where = places(home)
    if not exists(where):
        raise UserError(f"There is no home {where.home}", "Run a recipe, or give --home")
    store = Store.open(where.home)
    ledger = Ledger(store)
    version = version or newest(ledger)
    table = Table(title=f"Held-out pairs ranked as people did, reward models of V{version}")
    for heading in ("domain", "pairs", "reward model", "baseline", "its accuracy", "lead", "95 %"):
        table.add_column(heading, justify="left" if heading in ("domain", "baseline") else "right")
    for domain in Domain:
        for c in compared(store, ledger, version, domain):
            table.add_row(
                c.domain,
                str(c.num_pairs),
                f"{c.own:.3f}",
                c.baseline,
                f"{c.theirs:.3f}",
                f"{c.lead.mean:+.3f}",
                f"[{c.lead.low:+.3f}, {c.lead.high:+.3f}]",
            )
    wide_console().print(table)


def newest(ledger: Ledger) -> int:
    """The newest version that has both reward models. Raises UserError when none has."""
    wanted = {reward_model_name(domain) for domain in Domain}
    found = [v for v in ledger.versions() if wanted <= set(ledger.nodes(v))]
    if not found:
        raise UserError("This home has no version with both reward models", "Give --home")
    return found[-1]


def compared(store: Store, ledger: Ledger, version: int, domain: Domain) -> list[Comparison]:
    """The reward model of one domain beside each baseline."""
    train, held_out, own = measured(store, ledger, version, domain)
    comparisons = []
    for name, vectorizer in VECTORIZERS.items():
        theirs = regression_points(vectorizer(), train, held_out)
        lead = paired_difference(own.tolist(), theirs.tolist())
        comparisons.append(
            Comparison(domain, name, len(own), float(own.mean()), float(theirs.mean()), lead)
        )
    return comparisons


def measured(
    store: Store, ledger: Ledger, version: int, domain: Domain
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Points]:
    """Training and held-out pairs of a reward model, and its points on the held-out ones."""
    key = ledger.head(version, reward_model_name(domain))
    manifest = store.manifest(key) if key else None
    if manifest is None:
        raise UserError(f"V{version} has no {domain} reward model", "Run it, or give --version")
    config = Config.model_validate(manifest.config)
    rows = [
        row
        for ref in config.preferences
        for row in read_table(store.local(ref), PREFERENCES).to_pylist()
        if row["domain"] == domain
    ]
    train = [row for row in rows if row["split"] == "train"]
    by_id = {row["preference_id"]: row for row in rows if row["split"] == "test"}

    folder = store.local(manifest.outputs["model"])
    overlong = when_held_out(config.overlong)
    pairs = render_pairs([*by_id.values()], Tokenizer.load(folder), config.max_tokens, overlong)
    if not pairs:
        raise UserError(f"V{version} has no held-out pair about {domain}", "Give --version")
    margins = score_pairs(load_reward(folder).eval(), pairs, ALONE).margins
    return train, [by_id[pair.id] for pair in pairs], points(margins.numpy())


def regression_points(
    vectorizer: CountVectorizer, train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]
) -> Points:
    """Points of a logistic regression on the difference of both answers' features.

    Each pair is learnt from in both orders, so that the regression has no side that it prefers.
    """
    vectorizer.fit([row[side] for row in train for side in ("chosen", "rejected")])

    def differences(rows: Sequence[dict[str, Any]]) -> csr_matrix:
        chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
        return vectorizer.transform(chosen) - vectorizer.transform(rejected)

    learnt = differences(train)
    labels = np.repeat([1, 0], len(train))
    regression = LogisticRegression(max_iter=2000, fit_intercept=False)
    regression.fit(vstack([learnt, -learnt]), labels)
    return points(regression.decision_function(differences(held_out)))


def points(margins: NDArray[Any]) -> Points:
    """1 for a positive margin, 0.5 for none, 0 for a negative one."""
    return (np.sign(margins) + 1) / 2


if __name__ == "__main__":
    typer.run(main)
