"""Do a home's reward models rank held-out pairs better than the words of the answers alone do?

    python -m benchmarks.bag_of_words --home HOME                # the newest version that has both
    python -m benchmarks.bag_of_words --home HOME --version 1
    python -m benchmarks.bag_of_words --home HOME --domain safety --folds 5

The baselines are logistic regressions on the difference between both answers' word counts and
between their tf-idf weights, with scikit-learn's defaults but for the intercept: there is none,
since neither side of a pair comes first. They learn from the very pairs that were there for the
reward model, and are asked about the same held-out ones. Prints each accuracy and, pair by pair,
the reward model's lead over it with its 95 % interval.

A test split of some hundred pairs decides little: two honest models lie within its noise. With
--folds every pair is held out once: a reward model is trained anew on the other folds with the
stage's settings, data mix and starting weights, and so is each baseline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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
from stages.models.batches import seed_from, shuffled
from stages.models.comparison import Difference, paired_difference
from stages.models.pairs import render_pairs, score_pairs, when_held_out
from stages.reward_model import Config, load_preferences, mixture, question, start, train
from stages.runtime.determinism import seed_everything
from stages.runtime.distributed import Rank, process_group
from stages.runtime.workdir import WorkDir
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


@dataclass(frozen=True)
class Subject:
    """A reward model's settings and the pairs of its domain, of every weekly batch and split."""

    store: Store
    key: str
    config: Config
    rows: list[dict[str, Any]]


VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="1 for V1; without it the newest.")
]
DomainOption = Annotated[
    Domain | None, typer.Option("--domain", help="One of the two; both without it.")
]
FoldsOption = Annotated[
    int | None,
    typer.Option("--folds", min=2, help="Hold every pair out once, and train anew so many times."),
]


@paragraphs
def main(
    home: HomeOption = None,
    version: VersionOption = None,
    domain: DomainOption = None,
    folds: FoldsOption = None,
) -> None:
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
    for each in [domain] if domain else Domain:
        subject = subject_of(store, ledger, version, each)
        for c in compared(subject) if folds is None else cross_validated(subject, folds):
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


def subject_of(store: Store, ledger: Ledger, version: int, domain: Domain) -> Subject:
    """What a version's reward model was made of. Raises UserError when there is none."""
    key = ledger.head(version, reward_model_name(domain))
    manifest = store.manifest(key) if key else None
    if key is None or manifest is None:
        raise UserError(f"V{version} has no {domain} reward model", "Run it, or give --version")
    config = Config.model_validate(manifest.config)
    tables = (read_table(store.local(ref), PREFERENCES) for ref in config.preferences)
    rows = [row for table in tables for row in table.to_pylist() if row["domain"] == domain]
    return Subject(store, key, config, rows)


def compared(subject: Subject) -> list[Comparison]:
    """The reward model beside each baseline, on the pairs that the run held out."""
    train, held_out, own = measured(subject)
    theirs = {
        name: regression_points(vectorizer(), train, held_out)
        for name, vectorizer in VECTORIZERS.items()
    }
    return comparisons(subject, own, theirs)


def comparisons(subject: Subject, own: Points, theirs: dict[str, Points]) -> list[Comparison]:
    """A line of the table for each baseline."""
    return [
        Comparison(
            domain=subject.config.domain,
            baseline=name,
            num_pairs=len(own),
            own=float(own.mean()),
            theirs=float(points_of_it.mean()),
            lead=paired_difference(own.tolist(), points_of_it.tolist()),
        )
        for name, points_of_it in theirs.items()
    ]


def measured(subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Points]:
    """Training and held-out pairs of a reward model, and its points on the held-out ones."""
    train = [row for row in subject.rows if row["split"] == "train"]
    by_id = {row["preference_id"]: row for row in subject.rows if row["split"] == "test"}
    manifest = subject.store.manifest(subject.key)
    assert manifest is not None
    folder = subject.store.local(manifest.outputs["model"])
    overlong, max_tokens = when_held_out(subject.config.overlong), subject.config.max_tokens
    pairs = render_pairs([*by_id.values()], Tokenizer.load(folder), max_tokens, overlong)
    if not pairs:
        domain = subject.config.domain
        raise UserError(f"This version has no held-out pair about {domain}", "Give --version")
    margins = score_pairs(load_reward(folder).eval(), pairs, ALONE).margins
    return train, [by_id[pair.id] for pair in pairs], points(margins.numpy())


def cross_validated(subject: Subject, num_folds: int) -> list[Comparison]:
    """Reward models and baselines trained anew on all folds but one, asked about that one."""
    own: list[Points] = []
    theirs: dict[str, list[Points]] = {name: [] for name in VECTORIZERS}
    for rows in folds_of(subject.rows, num_folds):
        train = [row for row in rows if row["split"] == "train"]
        held_out, found = trained_anew(subject, rows)
        own.append(found)
        for name, vectorizer in VECTORIZERS.items():
            theirs[name].append(regression_points(vectorizer(), train, held_out))
    joined = {name: np.concatenate(parts) for name, parts in theirs.items()}
    return comparisons(subject, np.concatenate(own), joined)


def folds_of(rows: list[dict[str, Any]], num_folds: int) -> Iterator[list[dict[str, Any]]]:
    """The rows split anew, once for each fold: pairs about one question are held out together."""
    questions = sorted({question(row) for row in rows})
    order = shuffled(len(questions), seed_from("folds"))
    fold = {questions[index]: place % num_folds for place, index in enumerate(order)}
    for held_out in range(num_folds):
        yield [
            row | {"split": "test" if fold[question(row)] == held_out else "train"} for row in rows
        ]


def trained_anew(
    subject: Subject, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], Points]:
    """The held-out rows, and the points of a reward model trained as the stage trains it."""
    config = subject.config.model_copy(update={"continue_from": None})
    with TemporaryDirectory(prefix="folds-") as folder:
        # Checkpoints lie beside an attempt: in a folder of its own, no fold finds another's and
        # goes on from a model that has learnt what this one holds out.
        attempt = Path(folder) / "attempt-1"
        attempt.mkdir()
        work = WorkDir(attempt, process_group(), subject.store)
        seed_everything(config.seed)
        model, tokenizer = start(config, work)
        max_tokens = min(config.max_tokens, model.config.max_seq_len)
        own, open_source = load_preferences(config, work)
        others = [row for row in own if row["domain"] != config.domain]
        mixed = mixture(config, rows + others, open_source)
        pairs = render_pairs(mixed, tokenizer, max_tokens, config.overlong)
        engine = train(config, model, pairs, work)
        by_id = {row["preference_id"]: row for row in rows if row["split"] == "test"}
        overlong = when_held_out(config.overlong)
        held_out = render_pairs([*by_id.values()], tokenizer, max_tokens, overlong)
        with torch.no_grad():
            margins = score_pairs(engine, held_out, work.rank).margins
    return [by_id[pair.id] for pair in held_out], points(margins.numpy())


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
    return (np.sign(margins.astype(np.float64)) + 1) / 2


if __name__ == "__main__":
    typer.run(main)
