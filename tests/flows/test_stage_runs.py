"""Which run of a stage an iteration joins, starts or believes; with runs that go by a script."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_stages import walk_all

from data_contracts.errors import UserError
from flows import stage_runs
from flows.graph import version_nodes
from flows.node import Node
from flows.recipe import LaunchSettings, Recipe
from flows.runner import Walk
from flows.stage_runs import Request, _attempts, _Call, _run, on_pools
from flows.standing.programs import stage_pools
from stages.runtime import stopping
from stages.runtime.launcher import Launch
from stages.runtime.stopping import Stopped

NewWalk = Callable[..., Walk]


class Scripted(_Call):
    """Runs by number: the state each is found in, and the one that it ends in."""

    def __init__(self, node: Node, key: str, script: list[tuple[str, str]]) -> None:
        super().__init__(None, node, key, "gpu", False)  # pyright: ignore[reportArgumentType]
        self.script = script
        self.asked: list[int] = []
        self.waited: list[int] = []

    def run(self, number: int) -> Any:
        self.asked.append(number)
        return flow_run(self.script[number][0])

    def wait(self, run: Any, scratch: Path) -> Any:
        number = self.asked[-1]
        self.waited.append(number)
        return flow_run(self.script[number][1])


def flow_run(state: str) -> Any:
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Completed, Crashed, Failed, Running, Scheduled

    made = {
        "scheduled": Scheduled(),
        "running": Running(),
        "completed": Completed(),
        "failed": Failed(message="Row 17 has no text. Add it."),
        "stopped": Failed(name="Stopped", message="Stopped on request, after step 3."),
        "crashed": Crashed(message="its machine is gone"),
    }
    return FlowRun(flow_id=uuid.uuid4(), name="rlhf-v1-sft", state=made[state])


@pytest.fixture
def done(new_walk: NewWalk, recipe: Recipe) -> tuple[Walk, Node, str]:
    """A walk in whose store v1's evaluation is finished."""
    walk = new_walk(recipe)
    walk_all(walk)
    node = version_nodes(recipe, 1)[-1]
    key = walk.ledger.head(1, "evaluate")
    assert key is not None
    return walk, node, key


@pytest.mark.parametrize(
    ("script", "asked", "waited"),
    [
        ([("scheduled", "completed")], [0], [0]),
        ([("running", "completed")], [0], [0]),
        ([("completed", "")], [0], []),
        ([("failed", ""), ("scheduled", "completed")], [0, 1], [1]),
        ([("scheduled", "crashed"), ("scheduled", "completed")], [0, 1], [0, 1]),
        ([("crashed", ""), ("crashed", ""), ("running", "completed")], [0, 1, 2], [2]),
    ],
    ids=["new", "joined", "ended meanwhile", "failed before", "crashed", "crashed before"],
)
def test_a_run_of_the_past_is_not_the_result_and_one_at_work_is_joined(
    done: tuple[Walk, Node, str],
    script: list[tuple[str, str]],
    asked: list[int],
    waited: list[int],
):
    walk, node, key = done
    call = Scripted(node, key, script)
    assert _attempts(call, walk).manifest.key == key
    assert (call.asked, call.waited) == (asked, waited)


def test_what_completed_without_its_files_is_made_again(done: tuple[Walk, Node, str]):
    walk, node, _ = done
    call = Scripted(node, "0" * 64, [("completed", ""), ("scheduled", "failed")])
    with pytest.raises(UserError, match=r"v1/evaluate on pool gpu: Row 17 has no text"):
        _attempts(call, walk)
    assert call.asked == [0, 1]


@pytest.mark.parametrize(
    ("ends", "kind", "starts"),
    [(["failed"], UserError, 1), (["stopped"], Stopped, 1), (["crashed"] * 3, UserError, 3)],
    ids=["failed", "stopped", "crashed"],
)
def test_only_crashes_are_tried_again_and_not_for_ever(
    done: tuple[Walk, Node, str], ends: list[str], kind: type[UserError], starts: int
):
    walk, node, _ = done
    call = Scripted(node, "0" * 64, [("scheduled", end) for end in ends])
    with pytest.raises(UserError) as error:
        _attempts(call, walk)
    assert type(error.value) is kind
    assert len(call.waited) == starts


def test_the_stage_itself_runs_what_was_asked_for_and_nothing_else(done: tuple[Walk, Node, str]):
    walk, node, key = done
    file = walk.store.work(key) / "request.json"
    with pytest.raises(UserError, match=r"request\.json cannot be read on this worker"):
        _run(walk.store, key, force=False)
    config = node.config(walk.resolve, walk.store.local)
    request = Request(stage="evaluate", config=config.model_dump(mode="json"), launch=Launch())
    file.write_text(request.model_dump_json())
    assert _run(walk.store, key, force=False).manifest.key == key
    other = config.model_copy(update={"seed": 99}).model_dump(mode="json")
    file.write_text(request.model_copy(update={"config": other}).model_dump_json())
    with pytest.raises(UserError, match="another key on this worker"):
        _run(walk.store, key, force=False)


def test_a_home_in_a_bucket_has_no_work_folder_to_share(
    done: tuple[Walk, Node, str], monkeypatch: pytest.MonkeyPatch
):
    walk, node, _ = done
    launch = LaunchSettings(pools={"evaluate": "gpu"})
    walk.recipe = walk.recipe.model_copy(update={"launch": launch})
    monkeypatch.setattr(walk.store, "home", "s3://bucket/rlhf")
    config = node.config(walk.resolve, walk.store.local)
    with pytest.raises(UserError, match=r"v1/evaluate cannot run on pool gpu.*launch\.pools"):
        on_pools(node, config, walk, False)


def test_an_iterations_own_pool_is_refused(recipe: Recipe):
    def with_pool(pool: str) -> Recipe:
        return recipe.model_copy(update={"launch": LaunchSettings(pools={"ppo": pool})})

    assert stage_pools(with_pool("a100")) == {"a100": 1}
    with pytest.raises(UserError, match="waits for the stage meanwhile"):
        stage_pools(with_pool("rlhf"))
    for wrong in ({"pretraining": "a100"}, {"ppo": "two words"}):
        with pytest.raises(ValueError, match=r"no stage|no name of a pool"):
            LaunchSettings(pools=wrong)


def test_standing_still_is_told_once_and_again_after_a_move(monkeypatch: pytest.MonkeyPatch):
    from flows import boards
    from flows.progress import Snapshot

    clock, told = [0.0], []
    monkeypatch.setattr(boards.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(boards, "emit_event", lambda **event: told.append(event["payload"]["text"]))
    watch = boards.StallWatch("v3/ppo", minutes=2)
    first, second = (Snapshot(done, 40, "step", done) for done in (7, 8))
    for seconds, snapshot in (
        (119, None),
        (121, None),
        (130, None),
        (140, first),
        (250, first),
        (261, first),
        (400, first),
        (410, second),
        (520, second),
        (531, second),
    ):
        clock[0] = seconds
        watch.look(snapshot)
    assert told == [
        "v3/ppo has stood at its beginning for 2 minutes",
        "v3/ppo has stood at 7 of 40 steps for 2 minutes",
        "v3/ppo has stood at 8 of 40 steps for 2 minutes",
    ]


def test_an_override_is_about_one_verdict(tmp_path: Path):
    from data_contracts.store import Store
    from flows.gates import Gate, Verdict, read_verdict, record

    store = Store.open(tmp_path)
    with pytest.raises(UserError, match="has not been judged"):
        read_verdict(store, 3)
    gate = Gate(model="policy", condition="is better", measured=0.4, limit=0.5, passed=False)
    verdict = Verdict(version=3, gates=(gate,))
    record(store, verdict)
    assert read_verdict(store, 3) == verdict
    other = Verdict(version=3, gates=(gate.model_copy(update={"measured": 0.41}),))
    assert verdict.digest() != other.digest()
    assert [str(g) for g in verdict.failed()] == ["policy: is better (0.400, limit 0.500)"]


class Waiting:
    """A client whose one run stands still; what is done to it is noted."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.set: list[str] = []

    def read_flow_run(self, _: Any) -> Any:
        raise AssertionError("it was not asked to stop")

    def set_flow_run_state(self, _: Any, state: Any) -> None:
        self.set.append(state.name)


def test_a_stage_that_waits_for_its_pool_is_given_up_when_the_home_is_asked_to_stop(
    done: tuple[Walk, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At work the stage itself is asked, and writes a checkpoint; here nobody would be."""
    walk, node, key = done
    monkeypatch.setattr(stage_runs, "_POLL_SECONDS", 0.0)
    walk.store.scratch.mkdir(parents=True, exist_ok=True)
    stopping.ask(walk.store.scratch)
    client = Waiting("scheduled")
    call = _Call(client, node, key, "gpu", False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(Stopped, match=r"before pool gpu took v1/evaluate"):
        call.wait(flow_run("scheduled"), walk.store.scratch)
    assert client.set == ["Cancelled"]
    with pytest.raises(AssertionError, match="not asked"):  # at work: it is waited for
        call.wait(flow_run("running"), walk.store.scratch)
    assert client.set == ["Cancelled"]
