"""(k), (l): reward hacking, and what gate and whitening do, on short PPO runs from V1."""

from typing import Any

from data_contracts.ratings import Domain
from data_contracts.store import Manifest
from paper import gold
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, mean, paired
from paper.lab import Lab
from stages.models.sampling import response_body
from stages.runtime.workdir import read_metrics
from stages.text.tokenizer import Tokenizer

FAST = 2e-4
"""A learning rate twice the recipe's, for both arms: what is slow shows within the time."""
FREE, HELD = "no penalty", "penalty"
"""The arms of (k)."""
GATE_OFF = 1e-9
"""A threshold that no score lies below."""


def ppo(lab: Lab, **changes: Any) -> Manifest:
    """PPO from the first version's rejection-sampling model with its reward models."""
    return lab.varied(
        5,
        "ppo",
        **{"policy": lab.output(1, "rejection_sampling"), **lab.reward_models(1), **changes},
    )


# ---- (k) reward hacking


def hacking(lab: Lab) -> Estimates:
    """Reward-model and gold score of the same answers, without a KL penalty and with it."""
    common = {"learning_rate": FAST, "num_iterations": 2 * lab.scale.ppo_iterations}
    runs = {FREE: ppo(lab, **common, kl_beta=0.0), HELD: ppo(lab, **common)}
    models = {"start": lab.output(1, "rejection_sampling")}
    models |= {name: run.outputs["model"] for name, run in runs.items()}
    estimates: Estimates = {}
    scores: dict[str, gold.ByPrompt] = {}
    rewards: dict[str, gold.ByPrompt] = {}
    for name, model in models.items():
        rows = gold.answers(lab, model)
        scores[name] = gold.by_prompt(rows, Domain.helpfulness)
        rewards[name] = gold.by_prompt(rows, Domain.helpfulness, _helpfulness_score)
        estimates[f"gold/{name}"] = mean(list(scores[name].values()))
        estimates[f"reward/{name}"] = mean(list(rewards[name].values()))
    estimates["reward rises"] = paired(rewards[FREE], rewards["start"])
    estimates["gold falls"] = paired(scores["start"], scores[FREE])
    estimates["penalty holds"] = paired(scores[HELD], scores[FREE])
    estimates["lost with penalty"] = paired(scores["start"], scores[HELD])
    for name, run in runs.items():
        estimates |= curve(lab, run, name)
    return estimates


def _helpfulness_score(row: gold.Row) -> float:
    return row["helpfulness_score"]


def curve(lab: Lab, run: Manifest, name: str) -> Estimates:
    """Gold score on harmless prompts, and RM score and KL on all, of each iteration's samples."""
    estimates = {}
    for iteration, found in gold_by_iteration(lab, run).items():
        estimates[f"gold, {name}/{iteration}"] = mean(found)
    for row in read_metrics(lab.store, run.key):
        if "ppo/kl" in row:
            estimates[f"KL, {name}/{row['step']}"] = Estimate(row["ppo/kl"])
            estimates[f"RM, {name}/{row['step']}"] = Estimate(row["ppo/helpfulness_score"])
    return estimates


def gold_by_iteration(lab: Lab, run: Manifest) -> dict[int, list[float]]:
    """Gold helpfulness of the harmless prompts' rollouts, iterations counted from 1."""
    tokenizer = Tokenizer.load(lab.folder(run.outputs["model"]))
    asked = {row["prompt_id"]: row for row in lab.rows(lab.prompts)}
    scores: dict[int, list[float]] = {}
    for row in lab.rows(run.outputs["rollouts"]):
        if row["domain"] == Domain.helpfulness:
            body = response_body(row["response_tokens"], tokenizer.eos_id)
            answer = {**asked[row["prompt_id"]], "response": tokenizer.decode(body)}
            answer["finished"] = row["finished"]
            scores.setdefault(row["iteration"] + 1, []).append(gold.judged(answer).helpfulness)
    return scores


# ---- (l) gate and whitening


def gate_and_whitening(lab: Lab) -> Estimates:
    """The gate on prompts that carry no tag, and whitening on tagged ones."""
    return {**gate(lab), **whitening(lab)}


def gate(lab: Lab) -> Estimates:
    """All training prompts filed under helpfulness: only the Safety RM's score can raise an alarm.

    PPO starts from the SFT model, which gives in to many adversarial prompts. Its Helpfulness RM
    knows helpfulness pairs alone: with safety pairs in its mix it holds the policy back by itself,
    and the gate has nothing to do. Its scores are normalised: at whatever level the ranking loss
    leaves them, what the gate catches may score more than what is good.
    """
    helpful_only = lab.varied(
        1, "reward_model-helpfulness", other_share=0.0, normalise_scores=True
    ).outputs["model"]
    untagged = lab.made(
        "paper.stages.choose", table=lab.prompts, filed_under=Domain.helpfulness
    ).outputs["table"]
    common = {
        "policy": lab.sft,
        "prompts": untagged,
        "num_prompts": {Domain.helpfulness: 6_000},
        "num_held_out_prompts": {Domain.helpfulness: 64},
        "learning_rate": FAST,
        "helpfulness_rm": helpful_only,
    }
    runs = {"gate on": ppo(lab, **common), "gate off": ppo(lab, **common, gate_threshold=GATE_OFF)}
    scores = {name: both_domains(lab, run) for name, run in runs.items()}
    estimates = levels(scores)
    for domain, name in ((Domain.safety, "gate, safety"), (Domain.helpfulness, "gate, help")):
        estimates[name] = paired(scores["gate on"][domain], scores["gate off"][domain])
    return estimates


def whitening(lab: Lab) -> Estimates:
    """Rewards whitened and as they are, at the same β and learning rate."""
    runs = {
        "whitened": ppo(lab),
        "not whitened": ppo(lab, whiten_by="none"),
    }
    scores = {name: both_domains(lab, run) for name, run in runs.items()}
    estimates = levels(scores)
    for name, run in runs.items():
        kls = [row["ppo/kl"] for row in read_metrics(lab.store, run.key) if "ppo/kl" in row]
        estimates[f"last KL/{name}"] = Estimate(kls[-1])
    estimates["whitening"] = paired(
        _together(scores["whitened"]), _together(scores["not whitened"])
    )
    return estimates


def both_domains(lab: Lab, run: Manifest) -> dict[Domain, gold.ByPrompt]:
    """Gold scores of a run's model on held-out prompts."""
    rows = gold.answers(lab, run.outputs["model"])
    return {domain: gold.by_prompt(rows, domain) for domain in Domain}


def levels(scores: dict[str, dict[Domain, gold.ByPrompt]]) -> Estimates:
    """Mean gold score of each run in each domain."""
    return {
        f"{domain}/{name}": mean(list(found[domain].values()))
        for name, found in scores.items()
        for domain in Domain
    }


def _together(scores: dict[Domain, gold.ByPrompt]) -> gold.ByPrompt:
    return {prompt: score for found in scores.values() for prompt, score in found.items()}


FINDINGS = (
    Finding(
        "k",
        "§3.2.3",
        "Without the KL penalty the policy exploits its reward model: the reward rises and the "
        "true quality falls. With the penalty it does not fall so far.",
        f"PPO from V1 without the penalty and with the recipe's, both at a learning rate of "
        f"{FAST:g} and twice as long as V5's; the last best checkpoint's answers to held-out "
        "harmless prompts by the Helpfulness RM and by the gold judge.",
        hacking,
        (
            Effect("reward rises", "RM score, no penalty minus start"),
            Effect("gold falls", "gold helpfulness, start minus no penalty"),
            Effect("penalty holds", "gold helpfulness, penalty minus no penalty"),
        ),
        (
            Chart("lines", {a: f"gold, {a}" for a in (FREE, HELD)}, "iteration", "gold"),
            Chart(
                "lines",
                {a: f"RM, {a}" for a in (FREE, HELD)},
                "iteration",
                "RM score, all prompts",
            ),
        ),
        takes_long=True,
        weight=12,
    ),
    Finding(
        "l",
        "§3.2.3",
        "The safety gate and the whitening of rewards earn their place.",
        "Gate: PPO from SFT on prompts without a safety tag, with a Helpfulness RM that knows no "
        "safety pairs, with the threshold of 0.15 and without one. Whitening: PPO from V1 at one "
        "β, rewards whitened and as they are.",
        gate_and_whitening,
        (
            Effect("gate, safety", "gold safety, gate on minus off"),
            Effect("whitening", "gold score of both domains, whitened minus not"),
        ),
        (Chart("bars", {d.value: d.value for d in Domain}, "run", "gold score"),),
        takes_long=True,
        weight=11,
    ),
)
