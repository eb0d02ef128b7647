"""Bradley-Terry strengths of versions on Elo's scale, with intervals.

The model: version i is preferred to j with probability s_i / (s_i + s_j); a tie counts half a win
for each. Strengths are the maximum of the likelihood, found by Hunter's MM iteration (2004).
Intervals come from a bootstrap over prompts, since a prompt's comparisons hang together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ELO_PER_TENFOLD = 400.0
"""Elo points for odds of 10 to 1."""
_MOST_ROUNDS = 10_000
_PRECISION = 1e-9


@dataclass(frozen=True)
class Game:
    """One comparison; `points` are `first`'s: 1 for a win, ½ for a tie, 0 for a loss."""

    prompt_id: str
    first: str
    second: str
    points: float


@dataclass(frozen=True)
class Strength:
    """A version's Elo and its 95 % interval; the anchor has its own number and no interval."""

    version: str
    elo: float
    low: float
    high: float
    num_games: int


def strengths(
    games: Sequence[Game],
    anchor: str,
    *,
    anchor_elo: float = 1000.0,
    virtual_ties: float = 1.0,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[Strength]:
    """Strength of every version that has a game, in the order in which they come.

    `virtual_ties` are added to each pair that has met, so that a version which won every game has
    a finite strength; with 0 it is infinite. ValueError when the anchor has no game, or when
    versions that never met, not even through others, would be compared.
    """
    versions = list(dict.fromkeys(name for game in games for name in (game.first, game.second)))
    if anchor not in versions:
        raise ValueError(f"The anchor {anchor} has no game; take one of {', '.join(versions)}")
    points = _points(games, versions)
    total = points.sum(0)
    met = (total + total.T > 0).astype(float)
    if not _is_connected(met):
        raise ValueError("Some versions never met the others, so their strengths have no relation")
    prior = met * virtual_ties / 2
    position = versions.index(anchor)
    elo = anchor_elo + _elo((total + prior)[None], position)[0]
    weights = np.random.default_rng(seed).multinomial(
        len(points), np.full(len(points), 1 / len(points)), size=num_resamples
    )
    resampled = np.einsum("rp,pij->rij", weights, points) + prior
    low, high = np.quantile(anchor_elo + _elo(resampled, position), [0.025, 0.975], axis=0)
    counts = (total + total.T).sum(1)
    return [
        Strength(v, float(elo[i]), float(low[i]), float(high[i]), round(float(counts[i])))
        for i, v in enumerate(versions)
    ]


def expected_score(elo: float, other: float) -> float:
    """Probability that a version of this Elo is preferred to the other."""
    return 1 / (1 + 10 ** ((other - elo) / ELO_PER_TENFOLD))


def _points(games: Sequence[Game], versions: list[str]) -> np.ndarray:
    """Points of row over column, by prompt [prompts, versions, versions]."""
    place = {name: i for i, name in enumerate(versions)}
    prompts = {p: i for i, p in enumerate(dict.fromkeys(game.prompt_id for game in games))}
    points = np.zeros((len(prompts), len(versions), len(versions)))
    for game in games:
        assert game.first != game.second, game
        i, j, p = place[game.first], place[game.second], prompts[game.prompt_id]
        points[p, i, j] += game.points
        points[p, j, i] += 1 - game.points
    return points


def _elo(points: np.ndarray, anchor: int) -> np.ndarray:
    """Elo relative to the anchor of each sample of points [samples, versions, versions]."""
    games = points + points.transpose(0, 2, 1)
    won = points.sum(2)
    strength = np.ones(won.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_MOST_ROUNDS):
            pairs = games / (strength[:, :, None] + strength[:, None, :])
            new = won / pairs.sum(2)
            new /= np.exp(np.log(np.maximum(new, 1e-300)).mean(1, keepdims=True))
            change = np.abs(np.log(np.maximum(new, 1e-300) / np.maximum(strength, 1e-300))).max()
            strength = new
            if change < _PRECISION:
                break
        scale = ELO_PER_TENFOLD / math.log(10)
        return scale * (np.log(strength) - np.log(strength[:, [anchor]]))


def _is_connected(met: np.ndarray) -> bool:
    reached = np.linalg.matrix_power(met + np.eye(len(met)), len(met)) > 0
    return bool(reached.all())
