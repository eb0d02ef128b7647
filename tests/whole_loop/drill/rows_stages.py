"""One stage again: after a failure, on request, by two at once, and because its file is damaged."""

import subprocess
import sys

import yaml
from drill.house import RERUN, WEEKLY, House
from drill.row import Row, require
from whole_loop_home import environment_of


def fails_and_is_retried(house: House) -> str:
    """A limit that is too low ends one stage; with a higher one Retry runs that and the rest."""
    mine = house.folder / "mine.yaml"
    limit = {"timeout_minutes": {"rejection_sampling": 0.001}}
    house.write_recipe(mine, {"extends": str(house.recipe), "launch": limit})
    version = house.ledger.versions()[-1] + 1
    run = house.prefect.start(WEEKLY, version=version, recipe=str(mine))
    failed = house.prefect.await_state(run, "FAILED", "COMPLETED", "CRASHED")
    require(failed["state_type"] == "FAILED", failed["state"])
    require("its limit" in failed["state"]["message"], failed["state"]["message"])
    done = set(house.ledger.nodes(version))
    before = house.num_attempts()
    limit["timeout_minutes"]["rejection_sampling"] = 60
    mine.write_text(yaml.safe_dump({"extends": str(house.recipe), "launch": limit}))
    house.prefect.retry(run)
    house.prefect.completed(run)
    require(house.ran(before) == ["evaluate", "rejection_sampling"], house.ran(before))
    return f"{len(done)} stages reused, 2 run"


def one_stage_again(house: House) -> str:
    """The page's Custom Run of `rerun-stage/any`."""
    before, digests = house.num_attempts(), house.digests(1)
    run = house.prefect.start(
        RERUN, iteration=1, stage="reward_model-safety", force=True, cascade=True
    )
    house.prefect.completed(run)
    require(house.ran(before) == ["reward_model"], house.ran(before))
    require(house.digests(1) == digests, "its digest has changed")
    return "same digest"


def two_runners(house: House) -> str:
    """Two flow runs take turns, a shell is refused, and two bare stages share one result."""
    before, digests = house.num_attempts(), house.digests(1)
    runs = [house.prefect.start(RERUN, iteration=1, stage="reward_model-safety") for _ in range(2)]
    house.wait_until(lambda: house.ran(before), "one to begin")
    with house.held("flow run"):
        shell = house.rlhf("stage", "reward_model-safety", "--version", "1", "--force")
    for run in runs:
        house.prefect.completed(run)
    require(shell.returncode == 2 and "held by process" in shell.stderr, shell.stderr)
    require(house.ran(before) == ["reward_model"] * 2, house.ran(before))
    begun = _bare_stages(house)
    require(house.digests(1) == digests, "digests have changed")
    return f"in turn; shell refused; bare stages: {begun}"


def _bare_stages(house: House) -> str:
    """`python -m stages.…` twice on one home in which its result is missing."""
    key = house.key(1, "reward_model-safety")
    config = max((house.work / key).glob("attempt-*")) / "config.json"
    manifest = house.home / "manifests" / f"{key}.json"
    manifest.unlink()
    command = [sys.executable, "-m", "stages.reward_model", "--config", str(config)]
    environment = environment_of(house.home)
    both = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=600) for process in both]
    words = sorted(out.split()[0] for out, _ in answers if out)
    require(words == ["done", "reused"], answers)
    return ", ".join(words)


def corrupted_artifact(house: House) -> str:
    """One bit of a model on the disk: it is made again, and nothing else is."""
    before, digests = house.num_attempts(), house.digests(1)
    folder = house.home / "objects" / digests["reward_model-helpfulness:model"]
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(damaged)
    house.prefect.completed(house.prefect.start(WEEKLY, version=1))
    require(house.ran(before) == ["reward_model"], house.ran(before))
    require(house.digests(1) == digests, "digests have changed")
    return "made again, same digest"


ROWS = (
    Row("a stage fails, is fixed, Retry", fails_and_is_retried, is_core=True),
    Row("rerun-stage/any runs one stage", one_stage_again, is_core=True),
    Row("two runners of the same stage", two_runners),
    Row("corrupted artifact on disk", corrupted_artifact),
)
