"""What people and outside models said of a home's versions, kept where the report finds it.

judgements/gpt-x.v5-vs-sft.parquet   rows of the win_rates contract
judgements/gpt-x.v5-vs-sft.json      the same with scale, agreement, counts, and the games
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotation.evaluation.strengths import Game
from annotation.evaluation.verdicts import Rating, Summary, games, summaries
from data_contracts.base import Contract
from data_contracts.errors import UserError
from data_contracts.parquet import write_table
from data_contracts.store import Store
from data_contracts.tables import WIN_RATES

FOLDER = "judgements"
_OWN_JUDGES = ("gold", "reward_model")


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
        """Of its files."""
        judge = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.judge).strip("-.") or "judge"
        return f"{judge}.{self.version}-vs-{self.opponent}"


def judged(
    ratings: Sequence[Rating],
    version: str,
    opponent: str,
    judge: str,
    kind: str,
    counts: Mapping[str, float | None],
) -> tuple[Judgement, list[Summary]]:
    """A judgement from its ratings. Raises UserError for the name of a judge of our own."""
    if judge in _OWN_JUDGES:
        raise UserError(f"{judge!r} is the name of a judge of evaluate's", "Give another --judge")
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


def keep(store: Store, judgement: Judgement, rows: Sequence[Summary]) -> str:
    """Write a judgement into the home, in place of an earlier one of the same name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "win_rates.parquet"
        write_table(file, [summary.row for summary in rows], WIN_RATES)
        store.write(f"{FOLDER}/{judgement.name}.parquet", file.read_bytes())
    content = judgement.model_dump_json(indent=1).encode()
    store.write(f"{FOLDER}/{judgement.name}.json", content)
    return judgement.name


def read_judgements(store: Store) -> list[Judgement]:
    """Every judgement of a home, by name."""
    names = [name for name in store.names(FOLDER) if name.endswith(".json")]
    contents = [store.read(f"{FOLDER}/{name}") for name in names]
    return [Judgement.model_validate(json.loads(content)) for content in contents if content]


def read_win_rates(store: Store) -> list[dict[str, Any]]:
    """Rows of the win_rates table of every judgement."""
    rows = []
    for name in store.names(FOLDER):
        content = store.read(f"{FOLDER}/{name}") if name.endswith(".parquet") else None
        if content is not None:
            rows += pq.read_table(pa.BufferReader(content)).to_pylist()
    return rows


def all_games(judgements: Sequence[Judgement]) -> dict[tuple[str, str], list[Game]]:
    """Games by judge and domain, over all pairs of versions that the judge has seen."""
    found: dict[tuple[str, str], list[Game]] = {}
    for one in judgements:
        for domain, played in one.games.items():
            found.setdefault((one.judge, domain), []).extend(
                Game(prompt_id, one.version, one.opponent, points) for prompt_id, points in played
            )
    return found
