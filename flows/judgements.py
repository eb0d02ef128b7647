"""What people and outside models said of a home's versions, kept where the report finds it.

judgements/gpt-x.v5-vs-sft.parquet   rows of the win_rates contract
judgements/gpt-x.v5-vs-sft.json      the same with scale, agreement, counts, and the games
"""

import hashlib
import operator
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from annotation.evaluation.strengths import Game
from annotation.evaluation.verdicts import Rating, Summary, games, summaries
from data_contracts.base import Contract
from data_contracts.errors import StoreError, UserError
from data_contracts.parquet import write_table
from data_contracts.store import Store
from data_contracts.tables import WIN_RATES

FOLDER = "judgements"
_OWN_JUDGES = ("gold", "reward_model")
_OTHER_NAME = "Give another name: --judge of `read`, --model of `judge`"
_LONGEST_NAME = 60
T = TypeVar("T")


class Judgement(Contract):
    """One judge's opinion of a version against another."""

    judge: str
    kind: str
    """people or model."""
    version: str
    opponent: str
    at: str
    """UTC, ISO 8601."""
    summaries: tuple[dict[str, Any], ...]
    """By domain; see `Summary`."""
    counts: dict[str, float | None]
    """What was asked, answered, refused, and what it cost."""
    games: dict[str, tuple[tuple[str, float], ...]]
    """By domain, each prompt and the version's points on it."""

    @property
    def name(self) -> str:
        """Of its files; two judges never have the same."""
        judge = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.judge).strip("-.")[:_LONGEST_NAME]
        if judge != self.judge:
            judge += "-" + hashlib.sha256(self.judge.encode()).hexdigest()[:8]
        return f"{judge}.{self.version}-vs-{self.opponent}"


def check_judge(store: Store, judge: str, kind: str) -> None:
    """Raise UserError for the name of a judge of our own, or of one of the other kind."""
    if judge in _OWN_JUDGES:
        raise UserError(f"{judge!r} is the name of a judge of evaluate's", _OTHER_NAME)
    for earlier in read_judgements(store):
        if earlier.judge == judge and earlier.kind != kind:
            raise UserError(
                f"{judge!r} is a judge of this home already: {earlier.kind}", _OTHER_NAME
            )


def judged(
    ratings: Sequence[Rating],
    version: str,
    opponent: str,
    judge: str,
    kind: str,
    counts: Mapping[str, float | None],
) -> tuple[Judgement, list[Summary]]:
    """A judgement from its ratings."""
    found = summaries(ratings, version, opponent, judge)
    by_domain = {
        row.row["domain"]: games(
            [rating for rating in ratings if rating.domain == row.row["domain"]], version, opponent
        )
        for row in found
    }
    judgement = Judgement(
        judge=judge,
        kind=kind,
        version=version,
        opponent=opponent,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        summaries=tuple(asdict(row) for row in found),
        counts=dict(counts),
        games={
            domain: tuple((game.prompt_id, game.points) for game in played)
            for domain, played in by_domain.items()
        },
    )
    return judgement, found


def keep(store: Store, judgement: Judgement) -> str:
    """Write a judgement into the home, in place of what the judge has said of the same versions
    and domains before. Raises UserError as `check_judge` does."""
    check_judge(store, judgement.judge, judgement.kind)
    earlier = next((j for j in read_judgements(store) if j.name == judgement.name), None)
    if earlier is not None:
        judgement = _with_other_domains(judgement, earlier)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "win_rates.parquet"
        write_table(file, [summary["row"] for summary in judgement.summaries], WIN_RATES)
        store.write(f"{FOLDER}/{judgement.name}.parquet", file.read_bytes())
    content = judgement.model_dump_json(indent=1).encode()
    store.write(f"{FOLDER}/{judgement.name}.json", content)
    return judgement.name


def _with_other_domains(judgement: Judgement, earlier: Judgement) -> Judgement:
    """A judgement with the domains that it says nothing of, as an earlier one had them."""
    others = [s for s in earlier.summaries if s["row"]["domain"] not in judgement.games]
    if not others:
        return judgement
    counts = judgement.counts
    if len(others) == len(earlier.summaries):  # two halves of one judgement
        counts = {
            name: value if known is None or value is None else _both(name)(value, known)
            for name, value in counts.items()
            for known in [earlier.counts.get(name)]
        }
    kept = {s["row"]["domain"]: earlier.games[s["row"]["domain"]] for s in others}
    return judgement.model_copy(
        update={
            "summaries": (*judgement.summaries, *others),
            "games": {**judgement.games, **kept},
            "counts": counts,
        }
    )


def _both(count: str) -> Callable[[float, float], float]:
    """How a count of one half and of the other come together: raters may be the same people."""
    return max if count in ("raters", "first_share") else operator.add


def read_judgements(store: Store) -> list[Judgement]:
    """Every judgement of a home, by name. Raises StoreError for a damaged file."""
    names = [name for name in store.names(FOLDER) if name.endswith(".json")]
    return [_parsed(store, name, Judgement.model_validate_json) for name in names]


def read_win_rates(store: Store) -> list[dict[str, Any]]:
    """Rows of the win_rates table of every judgement. Raises StoreError for a damaged file."""
    rows = []
    for name in store.names(FOLDER):
        if name.endswith(".parquet"):
            rows += _parsed(store, name, lambda c: pq.read_table(pa.BufferReader(c)).to_pylist())
    return rows


def _parsed(store: Store, name: str, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(store.read(f"{FOLDER}/{name}") or b"")
    except (ValueError, pa.ArrowException):
        raise StoreError(
            f"{FOLDER}/{name} in the store {store.home} is damaged",
            "Remove it with the file of the same name beside it, and read the sheets again; an "
            "outside model is asked for nothing twice",
        ) from None


def all_games(judgements: Sequence[Judgement]) -> dict[tuple[str, str], list[Game]]:
    """Games by judge and domain, over all pairs of versions that the judge has seen."""
    found: dict[tuple[str, str], list[Game]] = {}
    for one in judgements:
        for domain, played in one.games.items():
            found.setdefault((one.judge, domain), []).extend(
                Game(prompt_id, one.version, one.opponent, points) for prompt_id, points in played
            )
    return found
