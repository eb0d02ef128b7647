import hashlib
import json
import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from data_contracts.artifacts import ArtifactRef, digest_of, file_names
from data_contracts.errors import StoreError, UserError
from data_contracts.store import Manifest, Store, attempt_number

KEY = "a" * 64
ABSENT = ArtifactRef(digest="0" * 64, kind="files")


@pytest.fixture(params=["folder", "file", "memory"])
def store(request, tmp_path):
    home = {
        "folder": str(tmp_path / "home"),
        "file": f"file://{tmp_path}/home",
        "memory": f"memory://store-{uuid.uuid4().hex}",
    }[request.param]
    return Store.open(home, scratch=tmp_path / "scratch")


@pytest.fixture
def local_store(tmp_path):
    return Store.open(tmp_path / "home")


def folder_of(parent, **files):
    for name, text in files.items():
        path = parent / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return parent


def manifest(outputs, key=KEY, **changes):
    fields = {
        "key": key,
        "stage": "sft",
        "stage_version": "1",
        "config": {"seed": 0, "nested": {"rate": 1e-5}},
        "inputs": {"model": ABSENT},
        "outputs": outputs,
        "metrics": {"loss": 0.5},
        "num_rows": {"table": 3},
        "code_digest": "c",
        "git_commit": "",
        "packages": {"torch": "2"},
        "seconds": 1.5,
        "attempt": 1,
        "finished_at": "2025-01-01T00:00:00+00:00",
    }
    return Manifest(**(fields | changes))


def test_round_trip(store, tmp_path):
    source = folder_of(tmp_path / "out", a="A", sub__b="B")
    ref = store.publish(source, "checkpoint")
    assert ref.kind == "checkpoint"
    assert store.holds(ref)
    folder = store.local(ref)
    assert file_names(folder) == ["a", "sub/b"]
    assert (folder / "sub/b").read_text() == "B"
    assert digest_of({"a": sha("A"), "sub/b": sha("B")}) == ref.digest
    assert file_names(source) == ["a", "sub/b"]  # not the store's own folder: copied


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_another_process_reads_it(store, tmp_path):
    ref = store.publish(folder_of(tmp_path / "out", a="A", sub__b="B"), "files")
    other = Store.open(store.home, scratch=tmp_path / "other scratch")
    assert other.holds(ref)
    assert (other.local(ref) / "sub/b").read_text() == "B"
    assert other.local(ref) == other.local(ref)


def test_a_folder_of_the_stores_own_work_is_moved(store):
    out = folder_of(store.new_attempt(KEY) / "outputs" / "model", a="A")
    ref = store.publish(out, "files")
    assert not out.exists()
    again = folder_of(store.new_attempt(KEY) / "outputs" / "model", a="A")
    assert store.publish(again, "files") == ref
    assert not again.exists()
    assert (store.local(ref) / "a").read_text() == "A"


def test_equal_files_have_equal_digests_and_names_count(store, tmp_path):
    one = store.publish(folder_of(tmp_path / "1", a="A", b="B"), "files")
    assert store.publish(folder_of(tmp_path / "2", b="B", a="A"), "files") == one
    other = store.publish(folder_of(tmp_path / "3", a="B", b="A"), "files")
    assert other.digest != one.digest


def test_what_cannot_be_published(store, tmp_path):
    for folder, problem in (
        (tmp_path / "none", "is not a folder"),
        (folder_of(tmp_path / "out", a="A") / "a", "is not a folder"),
    ):
        with pytest.raises(StoreError, match=problem):
            store.publish(folder, "files")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no file"):
        store.publish(tmp_path / "empty", "files")
    linked = folder_of(tmp_path / "linked", a="A")
    (linked / "link").symlink_to("a")
    with pytest.raises(StoreError, match="is a link"):
        store.publish(linked, "files")
    with pytest.raises(ValueError, match="kind"):
        store.publish(folder_of(tmp_path / "bad kind", a="A"), "No Kind")


def test_what_is_absent(store):
    assert not store.holds(ABSENT)
    with pytest.raises(StoreError, match=r"000000000000 .* is missing"):
        store.local(ABSENT)
    assert store.check(KEY) == (None, "never run")
    with pytest.raises(StoreError, match=r"Output model of sft .* is not in the store"):
        store.commit(manifest({"model": ABSENT}))
    assert store.recorded(KEY) is None


def test_manifests(store, tmp_path):
    ref = store.publish(folder_of(tmp_path / "out", a="A"), "files")
    written = manifest({"model": ref}, metrics={"loss": 0.1, "gap": float("inf")})
    store.commit(written)
    assert store.check(KEY) == (written, "reuse")
    assert store.manifest(KEY) == written
    again = manifest({"model": ref}, attempt=2)
    store.commit(again)
    assert store.manifest(KEY) == again
    store.write(f"manifests/{KEY}.json", b'{"key": 1')
    assert store.check(KEY) == (None, "its manifest is damaged")
    store.write(f"manifests/{KEY}.json", manifest({}, key="b" * 64).model_dump_json().encode())
    assert store.manifest(KEY) is None


# ---- corruption on a local disk


DAMAGE = {
    "same size": (lambda f: (f / "a").write_text("X"), "corrupt: file a has changed"),
    "cut": (lambda f: os.truncate(f / "sub/b", 0), "corrupt: file sub/b has changed"),
    "gone": (lambda f: (f / "a").unlink(), "corrupt: file a is missing"),
    "extra": (lambda f: (f / "c").write_text("C"), "corrupt: file c does not belong to it"),
    "linked": (lambda f: (f / "c").symlink_to("a"), "corrupt: .*c is a link"),
    "listing": (lambda f: f.with_suffix(".json").write_text("{}"), "corrupt: its listing"),
    "no listing": (lambda f: f.with_suffix(".json").unlink(), "missing"),
    "no folder": (lambda f: f.rename(f.with_name("x")), "missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended(local_store, tmp_path, damage):
    store = local_store
    source = folder_of(tmp_path / "out", a="A", sub__b="B")
    ref = store.publish(source, "files")
    store.commit(manifest({"other": ref, "model": ref}))
    assert store.check(KEY)[1] == "reuse"
    break_it, fault = DAMAGE[damage]
    break_it(store.local(ref))
    found, reason = store.check(KEY)
    assert found is None
    assert reason.startswith("output other is ")
    assert re.search(fault, reason)
    assert not store.holds(ref)
    with pytest.raises(StoreError, match=fault):
        store.local(ref)
    assert store.publish(source, "files") == ref
    assert store.check(KEY)[1] == "reuse"
    assert sorted(os.listdir(store.local(ref))) == ["a", "sub"]
    assert not list((tmp_path / "home" / "work").glob(".incoming-*"))


def test_a_remembered_hash_does_not_hide_damage(local_store, tmp_path):
    ref = local_store.publish(folder_of(tmp_path / "out", a="A"), "files")
    path = local_store.local(ref) / "a"
    os.utime(path, (1e9, 1e9))
    assert local_store.holds(ref)
    path.write_text("X")
    os.utime(path, (1e9, 1e9))
    assert not local_store.holds(ref)


def test_files_are_read_once_per_process(local_store, tmp_path, monkeypatch):
    ref = local_store.publish(folder_of(tmp_path / "out", a="A"), "files")
    read = []
    monkeypatch.setattr(
        "data_contracts.belief.hash_file", lambda path: read.append(path) or sha("A")
    )
    monkeypatch.setattr("data_contracts.belief._RACY_NS", -(10**12))  # as if written long ago
    local_store.local(ref)
    local_store.local(ref)
    assert local_store.holds(ref)
    assert len(read) == 1


# ---- corruption on a remote store


def remote(tmp_path):
    home = f"memory://store-{uuid.uuid4().hex}"
    store = Store.open(home, scratch=tmp_path / "scratch")
    source = folder_of(tmp_path / "out", a="A", sub__b="B")
    return store, source, store.publish(source, "files"), fsspec.filesystem("memory")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda fs, at: fs.pipe_file(f"{at}/a", b"X"), "file a has changed"),
        (lambda fs, at: fs.rm(f"{at}/sub/b"), "file sub/b is missing"),
        (lambda fs, at: fs.pipe_file(f"{at}/c", b"C"), "file c does not belong"),
        (lambda fs, at: fs.rm(f"{at}.json"), "missing"),
        (lambda fs, at: fs.pipe_file(f"{at}.json", b"{}"), "listing has changed"),
    ],
)
def test_remote_damage_is_noticed_and_mended(tmp_path, damage, fault):
    store, source, ref, files = remote(tmp_path)
    store.commit(manifest({"model": ref}))
    assert store.check(KEY)[1] == "reuse"
    damage(files, f"{store.home.removeprefix('memory:/')}/objects/{ref.digest}")
    assert fault in store.check(KEY)[1]
    elsewhere = Store.open(store.home, scratch=tmp_path / "elsewhere")
    if "listing" not in fault and fault != "missing":
        with pytest.raises(StoreError, match=fault):
            elsewhere.local(ref)
    assert store.publish(source, "files") == ref
    assert store.check(KEY)[1] == "reuse"
    assert (elsewhere.local(ref) / "a").read_text() == "A"
    assert not list((tmp_path / "elsewhere" / "work").glob(".incoming-*"))


def test_an_upload_cut_short_is_not_believed(tmp_path, monkeypatch):
    store, _, _, files = remote(tmp_path)
    put_file = type(files).put_file

    def cut(self, source, target, *args, **kwargs):
        if target.endswith("/b"):
            raise ConnectionError("reset by peer")
        return put_file(self, source, target, *args, **kwargs)

    monkeypatch.setattr(type(files), "put_file", cut)
    source = folder_of(tmp_path / "new", a="new A", b="B")
    with pytest.raises(StoreError, match=r"Cannot write objects/.*credentials"):
        store.publish(source, "files")
    monkeypatch.undo()
    ref = ArtifactRef(digest=digest_of({"a": sha("new A"), "b": sha("B")}), kind="files")
    other = Store.open(store.home, scratch=tmp_path / "other")
    assert not other.holds(ref)
    assert store.publish(source, "files") == ref
    assert other.holds(ref)


def test_ranks_that_ask_together_download_once(tmp_path, monkeypatch):
    store, _, ref, files = remote(tmp_path)
    get_file = type(files).get_file
    downloads = []

    def counted(self, source, target, *args, **kwargs):
        downloads.append(source)
        return get_file(self, source, target, *args, **kwargs)

    monkeypatch.setattr(type(files), "get_file", counted)
    ranks = [Store.open(store.home, scratch=tmp_path / "elsewhere") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda rank: rank.local(ref), ranks))
    assert len(folders) == 1
    assert len(downloads) == 2


def test_scratch_by_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_SCRATCH", str(tmp_path))
    work = Store.open("memory://one").work(KEY)
    assert work.is_relative_to(tmp_path)
    assert work != Store.open("memory://two").work(KEY)


def test_homes_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="nothing here speaks zz://"):
        Store.open("zz://bucket/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot make the store .*file"):
        Store.open(tmp_path / "file")


# ---- work folders


def test_attempts_are_numbered(store):
    folders = [store.new_attempt(KEY) for _ in range(11)]
    assert [folder.name for folder in folders] == [f"attempt-{n}" for n in range(1, 12)]
    assert store.attempts(KEY) == folders
    assert attempt_number(folders[-1]) == 11
    assert (store.work(KEY) / "checkpoints").is_dir()


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_names_stay_inside_the_store(store, name):
    for use in (store.work, store.lock, store.check):
        with pytest.raises(StoreError, match="cannot name"):
            use(name)


def test_manifests_are_plain_json(local_store, tmp_path):
    ref = local_store.publish(folder_of(tmp_path / "out", a="A"), "files")
    local_store.commit(manifest({"model": ref}))
    text = (tmp_path / "home" / "manifests" / f"{KEY}.json").read_text()
    assert json.loads(text)["outputs"]["model"] == {"digest": ref.digest, "kind": "files"}
