"""The whole loop, as a user runs it: what it prints, what a second run costs, what it registers."""

import json
import sqlite3
import time
from pathlib import Path

from whole_loop_home import BASE, ITERATION, TINY, plan, rlhf_here, run_rlhf

from stages.models import normalisation


def test_it_ends_with_versions_and_places(first_run: tuple[Path, str]):
    home, printed = first_run
    for word in ("sft", "v1", "v2", "gold", "95 %"):
        assert word in printed
    for place in ("Prefect", "MLflow", str(home)):
        assert place in printed


def test_everything_is_reused_and_the_plan_says_why(home: Path):
    rows = plan(home)
    assert len(rows) == 19
    assert {row["action"] for row in rows.values()} == {"reuse"}
    assert all(row["reason"] for row in rows.values())


def test_a_second_run_computes_nothing(home: Path):
    before = {path: path.stat().st_mtime_ns for path in (home / "manifests").iterdir()}
    start = time.monotonic()
    out = run_rlhf("run", "--recipe", TINY, home=home)
    assert out.returncode == 0, out.stderr
    assert {path: path.stat().st_mtime_ns for path in (home / "manifests").iterdir()} == before
    assert time.monotonic() - start < 120  # not a speed test: it must not hang on a server


def test_a_forced_stage_gives_the_same_digest_and_leaves_the_rest_valid(home: Path):
    def heads() -> dict[str, str]:
        return {f"{row['name']}-{row['version']}": row["digest"] for row in models(home)}

    before = heads()
    out = run_rlhf(
        "stage", "reward_model", "--recipe", TINY, "--version", "2", "--force", home=home
    )
    assert out.returncode == 0, out.stderr
    assert heads() == before
    assert {row["action"] for row in plan(home).values()} == {"reuse"}


def test_the_helpfulness_models_bring_the_level_of_their_scores(home: Path):
    found = [Path(row["path"]) for row in models(home) if row["name"] == "helpfulness-rm"]
    assert len(found) == 2
    for folder in found:
        level = normalisation.read(folder)
        assert level.scale == 1
        assert level.shift != 0


def models(home: Path) -> list[dict[str, str]]:
    out = rlhf_here("models", "--json", home=home)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_mlflow_lists_parents_children_and_inputs(home: Path):
    (database,) = (home / "mlflow").glob("*.db")
    with sqlite3.connect(database) as connection:
        names = [name for (name,) in connection.execute("select name from runs")]
        children = connection.execute(
            """
            select parent.name, child.name
            from runs as child
            join tags on tags.run_uuid = child.run_uuid and tags.key = 'mlflow.parentRunId'
            join runs as parent on parent.run_uuid = tags.value
            """
        ).fetchall()
        (num_inputs,) = connection.execute("select count(*) from inputs").fetchone()
        models = {name for (name,) in connection.execute("select name from registered_models")}
    assert {"RLHF-V1", "RLHF-V2"} <= set(names)
    assert {parent: sorted(c for p, c in children if p == parent) for parent, _ in children} == {
        "Base": sorted(BASE),
        "RLHF-V1": sorted(ITERATION),
        "RLHF-V2": sorted([*ITERATION, "ppo"]),
    }
    assert num_inputs > 0
    assert models == {"policy", "helpfulness-rm", "safety-rm"}


def test_prefect_knows_the_runs(home: Path):
    (database,) = (home / "prefect").glob("*.db")
    with sqlite3.connect(database) as connection:
        flows = {name for (name,) in connection.execute("select name from flow_run")}
        tasks = {name for (name,) in connection.execute("select name from task_run")}
    assert {"rlhf-v1", "rlhf-v2"} <= flows
    assert any("rejection_sampling" in name for name in tasks)
