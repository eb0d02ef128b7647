"""(f), (g): the best and the median of N samples, and the temperature at which to draw them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_contracts.artifacts import ArtifactRef
from paper import gold
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, mean
from paper.lab import Lab

TEMPERATURES = (0.6, 1.0, 1.4, 1.8)
COUNTS = (1, 2, 4, 8, 16)
COLD, HOT = 1.0, 1.8
"""The temperatures between which (g) compares models."""
HELD = 0.25
"""Standard deviations by which a median may move and still be called flat."""
Draws = dict[float, np.ndarray]
"""Temperature → rewards, or other values, (prompts, samples)."""


def helpfulness_score(row: gold.Row) -> float:
    """The Helpfulness RM's."""
    return row["helpfulness_score"]


def sweep(
    lab: Lab, policy: ArtifactRef, value: Callable[[gold.Row], float] = helpfulness_score
) -> Draws:
    """A value of many answers to held-out prompts at each temperature."""
    rows = gold.answers(
        lab,
        policy,
        num_prompts=lab.scale.sweep_prompts,
        num_samples=lab.scale.sweep_samples,
        temperatures=TEMPERATURES,
    )
    draws: dict[float, dict[str, list[float]]] = {t: {} for t in TEMPERATURES}
    for row in rows:
        nearest = min(TEMPERATURES, key=lambda t: abs(t - row["temperature"]))
        draws[nearest].setdefault(row["prompt_id"], []).append(value(row))
    return {t: np.array(list(by_prompt.values())) for t, by_prompt in draws.items()}


def after_rlhf(lab: Lab) -> ArtifactRef:
    """The last version, after PPO."""
    return lab.output(5, "ppo")


# ---- (f) max and median


def max_and_median(lab: Lab) -> Estimates:
    """Reward of the best and of the median of N draws at T=1, SFT model (Figure 7)."""
    rewards = sweep(lab, lab.sft)[1.0]
    spread = float(rewards.std())
    estimates: Estimates = {}
    by_count = {n: (rewards[:, :n].max(1), np.median(rewards[:, :n], axis=1)) for n in COUNTS}
    for n, (best, middle) in by_count.items():
        estimates[f"max/{n}"], estimates[f"median/{n}"] = mean(best), mean(middle)
    (first, _), (best, middle) = by_count[COUNTS[0]], by_count[COUNTS[-1]]
    estimates["max rises"] = mean((best - first) / spread)
    moved = mean((middle - first) / spread)
    estimates["median up"] = Estimate(HELD - moved.value, moved.error)
    estimates["median down"] = Estimate(HELD + moved.value, moved.error)
    quality = sweep(lab, lab.sft, gold.gold_of)[1.0]
    chosen = np.take_along_axis(quality, rewards.argmax(1)[:, None], axis=1)[:, 0]
    estimates["best is better"] = mean(chosen - quality.mean(1))
    return estimates


# ---- (g) temperature


def temperature(lab: Lab) -> Estimates:
    """Best of N by temperature before and after RLHF (Figure 8)."""
    models = {"SFT": sweep(lab, lab.sft), "V5": sweep(lab, after_rlhf(lab))}
    estimates: Estimates = {}
    for name, draws in models.items():
        for t, rewards in draws.items():
            estimates[f"{name}/{t:g}"] = mean(rewards.max(1))
        estimates[f"best temperature/{name}"] = best_temperature(draws)
    worth = {name: worth_of_heat(draws) for name, draws in models.items()}
    estimates["heat is worth more"] = mean(worth["V5"] - worth["SFT"])
    return estimates


def worth_of_heat(draws: Mapping[float, np.ndarray]) -> np.ndarray:
    """What sampling hotter does to each prompt's best of N, in standard deviations of rewards."""
    return (draws[HOT].max(1) - draws[COLD].max(1)) / float(draws[1.0].std())


def best_temperature(draws: Mapping[float, np.ndarray]) -> Estimate:
    """Temperature of the highest mean best-of-N, its error by resampling prompts."""
    best = np.stack([draws[t].max(1) for t in TEMPERATURES])
    rng = np.random.default_rng(0)
    num_prompts = best.shape[1]
    tops = [peak(best[:, rng.integers(num_prompts, size=num_prompts)].mean(1)) for _ in range(400)]
    return Estimate(peak(best.mean(1)), float(np.std(tops)))


def peak(levels: Sequence[float] | np.ndarray) -> float:
    """Top of the parabola through all temperatures, kept inside their range."""
    curve = np.polynomial.Polynomial.fit(TEMPERATURES, levels, 2).convert().coef
    if len(curve) < 3 or curve[2] >= 0:
        return float(TEMPERATURES[int(np.argmax(levels))])
    return float(np.clip(-curve[1] / (2 * curve[2]), TEMPERATURES[0], TEMPERATURES[-1]))


FINDINGS = (
    Finding(
        "f",
        "Figure 7",
        "With more samples the best reward rises, while the median stays.",
        "1 to 16 answers of the SFT model at T=1 to held-out prompts, scored by V1's Helpfulness "
        f"RM. Flat means: the median moves by less than {HELD} standard deviations. The best of N "
        "rises by whatever it is chosen, so the gold judge must find it better too.",
        max_and_median,
        (
            Effect("max rises", "best of 16 minus best of 1, in standard deviations"),
            Effect("median up", f"{HELD} minus the median's move"),
            Effect("median down", f"{HELD} plus the median's move"),
            Effect("best is better", "gold helpfulness of the best of 16 minus the mean of the 16"),
        ),
        (Chart("lines", {"best": "max", "median": "median"}, "samples N", "reward", log_x=True),),
        weight=5,
    ),
    Finding(
        "g",
        "Figure 8",
        "RLHF raises the temperature at which the best of N is highest.",
        "Best of 16 at four temperatures before and after RLHF, PPO included. The test: sampling "
        f"at T={HOT} instead of {COLD} changes the best of 16 more favourably after RLHF than "
        "before, prompt by prompt.",
        temperature,
        (Effect("heat is worth more", "gain by heat, V5 minus SFT, in standard deviations"),),
        (
            Chart("lines", {"SFT": "SFT", "V5": "V5"}, "temperature", "best of 16, reward"),
            Chart("bars", {"best T": "best temperature"}, "model", "temperature"),
        ),
        weight=4,
    ),
)
