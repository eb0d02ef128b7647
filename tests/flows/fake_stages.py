"""Every stage's real Config with a body that takes no time: outputs follow from the config.

Run as a program it is the `rlhf` command with these bodies; the environment says which node is
to fail, and how: FAKE_FAIL="v2/ppo=kill", "=user" or "=bug", or "=slow" to show progress, which
goes to the Prefect page every FAKE_UPDATE_SECONDS.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from data_contracts.errors import UserError
from data_contracts.parquet import write_table
from data_contracts.ratings import Domain, Rating
from data_contracts.tables import CONTRACTS

TABLES = {
    "ingest": ("documents", "demonstrations", "prompts", "preferences", "open_preferences"),
    "tokenize_corpus": ("token_shards",),
    "sample_pairs": ("comparisons",),
    "collect_preferences": ("preferences",),
    "reward_model": ("accuracies", "calibration"),
    "rejection_sampling": ("scored_samples", "demonstrations"),
    "ppo": ("rollouts",),
    "ghost_attention": ("demonstrations",),
    "safety_distillation": ("demonstrations", "red_team"),
    "evaluate": ("evaluations", "win_rates", "rates"),
}
OTHERS = {
    "sandbox_world": {"files": "files"},
    "tokenizer": {"tokenizer": "tokenizer"},
    "pretrain": {"model": "checkpoint"},
    "sft": {"model": "checkpoint"},
    "reward_model": {"model": "checkpoint"},
    "rejection_sampling": {"model": "checkpoint"},
    "ppo": {"model": "checkpoint"},
    "distillation": {"model": "checkpoint"},
    "evaluate": {"figures": "figures"},
}
STAGES = sorted(TABLES.keys() | OTHERS.keys())
SHORT = ["num_versions=2", "ppo_from_version=2", "bag_all_from_version=2"]
"""Two versions of the demo show all that five do."""
SMALL = [part for setting in ("world.num_documents=7", *SHORT) for part in ("--set", setting)]


def install(put: Callable[[dict[str, Any], str, Any], None] = dict.__setitem__) -> None:
    """Put a fake module in place of every stage's; `put` may be monkeypatch.setitem."""
    from stages.runtime.stage import stage_module

    for stage in STAGES:
        real = stage_module(stage)
        fake = ModuleType(real.__name__)
        vars(fake).update(vars(real) | {"run": _body(stage)})
        put(sys.modules, real.__name__, fake)


def walk_all(walk: Any) -> list[Any]:
    """Run every node of a walk's recipe, without Prefect."""
    from flows.graph import nodes
    from flows.runner import run_node

    return [run_node(node, walk) for node in nodes(walk.recipe)]


def _body(stage: str) -> Callable[[Any, Any], Any]:
    def run(config: Any, work: Any) -> Any:
        from stages.runtime.stage import StageOutput

        for step in range(3):
            work.track(step, {"train/loss": 3.0 - step})
            work.progress(step + 1, 3, "step", loss=3.0 - step)
        if stage == "ppo":
            work.show(10, [{"prompt": "Who?", "response": "Me.", "kl": 0.5}])
        _fail_if_asked(stage, config)
        artifacts = {}
        for role in TABLES.get(stage, ()):
            kind = {"open_preferences": "preferences", "red_team": "prompts"}.get(role, role)
            folder = work.output(role)
            write_table(folder / f"{role}.parquet", _rows(role, config), CONTRACTS[kind])
            artifacts[role] = (folder, CONTRACTS[kind].kind)
        for role, kind in OTHERS.get(stage, {}).items():
            folder = work.output(role)
            (folder / "content.json").write_text(f"{stage} {config.meaning()}")
            if stage == "sandbox_world":
                for name in ("documents", "demonstrations", "prompts", "open_preferences"):
                    (folder / f"{name}.jsonl").write_text(f"{name} {config.meaning()}\n")
            artifacts[role] = (folder, kind)
        return StageOutput(artifacts, _metrics(stage, config))

    return run


def _fail_if_asked(stage: str, config: Any) -> None:
    where, _, how = os.environ.get("FAKE_FAIL", "").partition("=")
    version = getattr(config, "version", None) or getattr(config, "batch", None)
    if where not in (stage, f"v{version}/{stage}"):
        return
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "user":
        raise UserError("Row 17 of data.jsonl.gz has no field text", "Add it")
    if how == "slow":
        time.sleep(2)


def _metrics(stage: str, config: Any) -> dict[str, float]:
    if stage == "pretrain":
        return {"bits_per_byte_before": 8.0, "bits_per_byte_after": 2.5}
    if stage != "evaluate":
        return {"num_rows": 1.0}
    metrics = {}
    for i, label in enumerate(config.models):
        for domain in Domain:
            metrics[f"rm/{domain.value}/{label}"] = 0.5 + i
            metrics[f"gold/{domain.value}/{label}"] = 0.1 * i
    for domain in Domain:
        for name, value in (("gain", 0.2), ("gain_low", 0.1), ("gain_high", 0.3)):
            metrics[f"gold_{name}/{domain.value}"] = value
    return metrics


def _rows(role: str, config: Any) -> list[dict[str, Any]]:
    if role == "win_rates":
        return [_win_rate(label, d) for label in list(config.models)[1:] for d in Domain]
    if role == "accuracies":
        return [_accuracy(config.domain, test, r) for test in Domain for r in (None, *Rating)]
    return []


def _win_rate(label: str, domain: Domain) -> dict[str, Any]:
    return {
        "win_rate_id": f"{label}-{domain.value}",
        "version": label,
        "opponent": "sft",
        "domain": domain.value,
        "judge": "gold",
        "num_prompts": 10,
        "wins": 6,
        "ties": 2,
        "losses": 2,
        "win_rate": 0.7,
        "low": 0.6,
        "high": 0.8,
    }


def _accuracy(domain: Domain, test_set: Domain, rating: Rating | None) -> dict[str, Any]:
    return {
        "accuracy_id": f"{domain.value}-{test_set.value}-{rating}",
        "reward_model": domain.value,
        "test_set": test_set.value,
        "rating": rating.value if rating else None,
        "num_pairs": 100,
        "accuracy": 0.75,
        "low": 0.66,
        "high": 0.82,
    }


def _show_progress_often(seconds: str) -> None:
    from flows import progress  # not boards: Prefect reads its server's address when imported

    progress.PAGE_SECONDS = float(seconds)


if __name__ == "__main__":
    install()
    if "FAKE_UPDATE_SECONDS" in os.environ:
        _show_progress_often(os.environ["FAKE_UPDATE_SECONDS"])
    from flows.cli import main

    main()
