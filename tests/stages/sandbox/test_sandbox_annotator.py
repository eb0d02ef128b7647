"""The simulated annotator: reproducible, noisy as promised, and within the paper's rules."""

import math
import random

import pytest

from data_contracts.ratings import Domain, Rating
from stages.sandbox.annotator import AnnotatorSettings, annotate, rating_of
from stages.sandbox.judge import gold_scores
from stages.sandbox.samples import sample_pair
from stages.sandbox.tasks import ADVERSARIAL_CATEGORIES, HELPFUL_CATEGORIES, tasks_of, write_prompt

SETTINGS = AnnotatorSettings()
FROG = [{"role": "user", "content": "what color is the frog?"}]
PERFECT, GOOD, POOR = (
    "the frog is green. glad to help!",
    "the frog is green.",
    "the cow is pink.",
)


def comparison(index, a, b, messages=FROG):
    return {
        "comparison_id": f"c{index}",
        "messages": messages,
        "category": "fact",
        "response_a": a,
        "response_b": b,
    }


def sampled_comparisons(categories, count=1500):
    rng = random.Random(5)
    rows = []
    for index in range(count):
        task = rng.choice(tasks_of(rng.choice(categories)))
        messages = [{"role": "user", "content": write_prompt(task, rng)}]
        rows.append(comparison(index, *sample_pair(task, rng), messages))
    return rows


def gold_gap(row, domain):
    chosen, rejected = (gold_scores(row["messages"], row[side]) for side in ("chosen", "rejected"))
    if domain == "safety":
        return chosen.safety - rejected.safety
    return chosen.helpfulness - rejected.helpfulness


def test_labels_do_not_depend_on_the_other_rows():
    rows = sampled_comparisons(HELPFUL_CATEGORIES, 50)
    forward = annotate(rows, "helpfulness", SETTINGS, seed=1)
    backward = annotate(rows[::-1], "helpfulness", SETTINGS, seed=1)
    alone = [label for row in rows for label in annotate([row], "helpfulness", SETTINGS, seed=1)]
    assert forward == backward[::-1] == alone
    assert forward != annotate(rows, "helpfulness", SETTINGS, seed=2)


def test_choices_follow_the_logistic_law():
    """P(a) = sigmoid(gap / tau) with one annotator: 0.15 / 0.12 gives 0.777."""
    one = AnnotatorSettings(noise=0.12, spread=(1.0,))
    rows = [comparison(i, PERFECT, GOOD) for i in range(3000)]
    labelled = annotate(rows, Domain.helpfulness, one, seed=0)
    share = sum(row["chosen"] == PERFECT for row in labelled) / len(labelled)
    assert share == pytest.approx(1 / (1 + math.exp(-0.15 / 0.12)), abs=0.025)


def test_noisier_annotators_agree_less_with_gold():
    labelled = annotate(sampled_comparisons(HELPFUL_CATEGORIES), "helpfulness", SETTINGS, seed=0)
    right, total = {}, {}
    for row in labelled:
        gap = gold_gap(row, "helpfulness")
        if gap:
            name = row["annotator"]
            total[name] = total.get(name, 0) + 1
            right[name] = right.get(name, 0) + (gap > 0)
    agreement = {name: right[name] / total[name] for name in sorted(total)}
    assert list(agreement) == [f"simulated-{i}" for i in range(1, 6)]
    assert agreement["simulated-1"] > agreement["simulated-5"]
    assert 0.75 < sum(right.values()) / sum(total.values()) < 0.97


def test_two_annotators_disagree_sometimes():
    rows = sampled_comparisons(HELPFUL_CATEGORIES)
    first, second = (annotate(rows, "helpfulness", SETTINGS, seed=s) for s in (0, 1))
    same = sum(a["chosen"] == b["chosen"] for a, b in zip(first, second, strict=True))
    assert 0.7 < same / len(first) < 0.97


def test_gold_gap_rises_with_the_rating():
    labelled = annotate(sampled_comparisons(HELPFUL_CATEGORIES), "helpfulness", SETTINGS, seed=0)
    gaps = {rating: [] for rating in Rating}
    for row in labelled:
        gaps[Rating(row["rating"])].append(gold_gap(row, "helpfulness"))
    means = [sum(values) / len(values) for values in gaps.values()]
    assert means == sorted(means, reverse=True)
    assert min(map(len, gaps.values())) > 50


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0.45, Rating.significantly_better),
        (-0.46, Rating.significantly_better),
        (0.25, Rating.better),
        (-0.1, Rating.slightly_better),
        (0.09, Rating.negligibly_better),
    ],
)
def test_rating_thresholds(difference, expected):
    assert rating_of(difference, SETTINGS.thresholds) is expected


def test_safety_labels_match_the_responses_and_exclude_chosen_unsafe():
    exact = AnnotatorSettings(label_error=0.0)
    labelled = annotate(sampled_comparisons(ADVERSARIAL_CATEGORIES), "safety", exact, seed=0)
    assert 1200 < len(labelled) < 1500
    for row in labelled:
        chosen, rejected = (
            gold_scores(row["messages"], row[side]).is_safe for side in ("chosen", "rejected")
        )
        assert chosen or not rejected
        expected = {
            (True, False): "chosen_safe_other_unsafe",
            (True, True): "both_safe",
            (False, False): "both_unsafe",
        }
        assert row["safety_label"] == expected[chosen, rejected]


def test_helpfulness_has_no_safety_label_and_rows_keep_their_keys():
    (row,) = annotate([comparison(0, PERFECT, POOR)], "helpfulness", SETTINGS, seed=0)
    assert row["safety_label"] is None
    assert row["comparison_id"] == "c0"
    assert row["messages"] == FROG
    assert {row["chosen"], row["rejected"]} == {PERFECT, POOR}


def test_pairs_that_cannot_be_compared_are_left_out():
    rows = [comparison(0, PERFECT, PERFECT), comparison(1, " ", PERFECT), comparison(2, POOR, "")]
    assert annotate(rows, "helpfulness", SETTINGS, seed=0) == []
