"""Processes killed at the worst moment, and processes that run at the same time."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from data_contracts.artifacts import ArtifactRef, digest_of, hash_file
from data_contracts.store import Store

KEY = "a" * 64

RUNNER = """
    import os, signal, sys, time
    from pathlib import Path
    from data_contracts.store import Manifest, Store

    KEY = "a" * 64
    store = Store.open(sys.argv[1])

    def kill_at(name):
        def kill(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(os, name, kill)

    def run(text="A", before_publish=lambda: None, before_commit=lambda: None):
        attempt = store.new_attempt(KEY)
        out = attempt / "outputs" / "model"
        out.mkdir(parents=True)
        (out / "a").write_text(text)
        before_publish()
        ref = store.publish(out, "files")
        before_commit()
        store.commit(Manifest(
            key=KEY, stage="sft", stage_version="1", config={}, inputs={}, outputs={"model": ref},
            metrics={}, code_digest="", git_commit="", packages={}, seconds=0.0,
            attempt=int(attempt.name[8:]), finished_at=""))
"""


def start(home, script):
    source = textwrap.dedent(RUNNER) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", source, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def object_of(text, tmp_path):
    (tmp_path / "probe").write_text(text)
    return ArtifactRef(digest=digest_of({"a": hash_file(tmp_path / "probe")}), kind="files")


@pytest.mark.parametrize(
    ("script", "published"),
    [
        ("run(before_publish=lambda: kill_at('fsync'))", False),
        ("run(before_publish=lambda: kill_at('replace'))", False),  # the listing
        ("run(before_publish=lambda: kill_at('rename'))", False),  # the object itself
        ("run(before_commit=lambda: kill_at('fsync'))", True),
        ("run(before_commit=lambda: kill_at('replace'))", True),  # the manifest
    ],
)
def test_a_kill_leaves_nothing_believed(tmp_path, script, published):
    home = tmp_path / "home"
    assert finish(start(home, script))[0] == -signal.SIGKILL
    store = Store.open(home)
    assert store.holds(object_of("A", tmp_path)) == published
    assert store.check(KEY) == (None, "never run")
    assert store.names("manifests") == []
    code, _, err = finish(start(home, "run()"))
    assert (code, err) == (0, "")
    manifest, reason = store.check(KEY)
    assert reason == "reuse"
    assert manifest is not None
    assert manifest.attempt == 2


def test_two_runners_of_one_key_run_it_once(tmp_path):
    script = """
        with store.lock(KEY):
            if store.manifest(KEY):
                print("reused")
            else:
                time.sleep(0.5)
                run(text=str(os.getpid()))
                print("ran")
    """
    runners = [start(tmp_path / "home", script) for _ in range(2)]
    results = [finish(runner) for runner in runners]
    assert [code for code, _, _ in results] == [0, 0]
    assert sorted(out.strip() for _, out, _ in results) == ["ran", "reused"]
    assert Store.open(tmp_path / "home").check(KEY)[1] == "reuse"


def test_publishers_of_the_same_files_do_not_meet(tmp_path):
    script = """
        print("ready", flush=True)
        while not Path(sys.argv[1], "go").exists():
            time.sleep(0.001)
        for number in range(40):
            run(text=f"text {number}")
            assert store.check(KEY)[1] == "reuse", store.check(KEY)
    """
    home = tmp_path / "home"
    runners = [start(home, script) for _ in range(2)]
    for runner in runners:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
    (home / "go").write_text("")
    assert [finish(runner)[0::2] for runner in runners] == [(0, "")] * 2
    store = Store.open(home)
    assert all(store.holds(object_of(f"text {number}", tmp_path)) for number in range(40))
    assert len(store.attempts(KEY)) == 80


def test_a_lock_waits_says_for_whom_and_dies_with_its_owner(tmp_path, caplog):
    holder = start(
        tmp_path / "home",
        "with store.lock(KEY):\n    print('held', flush=True)\n    time.sleep(60)",
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store = Store.open(tmp_path / "home")
    lock_file = next((tmp_path / "home" / "locks").iterdir())
    assert json.loads(lock_file.read_text())["pid"] == holder.pid
    killer = subprocess.Popen(["sh", "-c", f"sleep 1.5; kill -9 {holder.pid}"])
    started = time.monotonic()
    with store.lock(KEY):
        assert 1.2 < time.monotonic() - started < 20
    killer.wait()
    finish(holder)
    assert f"held by process {holder.pid} on" in caplog.text
    assert lock_file.read_text() == ""


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    script = """
        with store.lock(KEY):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
        print(child, flush=True)
    """
    code, out, _ = wait_for_line(start(tmp_path / "home", script))
    assert code == 0
    started = time.monotonic()
    with Store.open(tmp_path / "home").lock(KEY):
        assert time.monotonic() - started < 30  # the child would keep it for 60
    os.kill(int(out), signal.SIGKILL)


def wait_for_line(process):
    """Exit code and first line; the pipes may still be held by a grandchild."""
    line = process.stdout.readline()
    code = process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    return code, line, ""


def test_abandoned_copies_are_swept(tmp_path):
    store = Store.open(tmp_path / "home")
    work = tmp_path / "home" / "work"
    for name in ("old", "new"):
        (work / f".incoming-{name}").mkdir(parents=True)
    os.utime(work / ".incoming-old", (1e9, 1e9))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("A")
    store.publish(tmp_path / "out", "files")
    assert [path.name for path in work.iterdir()] == [".incoming-new"]
    assert Path(store.home) == tmp_path / "home"
