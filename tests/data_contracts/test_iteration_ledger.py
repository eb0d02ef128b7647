import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_contracts.errors import StoreError
from data_contracts.ledger import Ledger, iteration_name
from data_contracts.store import Manifest, Store

KEYS = [letter * 64 for letter in "abc"]


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    home = tmp_path / "home" if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    return Store.open(home, scratch=tmp_path / "scratch")


def commit(store, tmp_path, key, text):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    (out / "a").write_text(text)
    ref = store.publish(out, "files")
    store.commit(
        Manifest(
            key=key,
            stage="sft",
            stage_version="1",
            config={},
            inputs={},
            outputs={"model": ref},
            metrics={},
            code_digest="",
            git_commit="",
            packages={},
            seconds=0.0,
            attempt=1,
            finished_at="",
        )
    )
    return ref


def test_heads_and_history(store, tmp_path):
    ledger = Ledger(store)
    assert (ledger.versions(), ledger.nodes(3), ledger.head(3, "sft")) == ([], [], None)
    refs = [commit(store, tmp_path, key, key) for key in KEYS]
    for key in (KEYS[0], KEYS[1], KEYS[1]):
        ledger.set_head(3, "sft", key)
    ledger.set_head(3, "reward_model:safety", KEYS[2])
    ledger.set_head(12, "sft", KEYS[0])
    ledger.set_head(0, "pretrain", KEYS[0])
    again = Ledger(store)
    assert again.head(3, "sft") == KEYS[1]
    assert [entry.key for entry in again.history(3, "sft")] == KEYS[:2]
    assert again.history(3, "sft")[1].outputs == {"model": refs[1]}
    assert again.versions() == [0, 3, 12]
    assert again.nodes(3) == ["reward_model:safety", "sft"]
    assert again.nodes(0) == ["pretrain"]


def test_a_forced_run_with_other_outputs_is_news(store, tmp_path):
    ledger = Ledger(store)
    for text in ("one", "two", "two"):
        commit(store, tmp_path, KEYS[0], text)
        ledger.set_head(1, "sft", KEYS[0])
    assert [entry.key for entry in ledger.history(1, "sft")] == [KEYS[0]] * 2


def test_a_head_needs_a_manifest(store):
    with pytest.raises(StoreError, match="sft of v3 cannot stand on the run aaaa"):
        Ledger(store).set_head(3, "sft", KEYS[0])


def test_bad_names_and_damage(store):
    ledger = Ledger(store)
    with pytest.raises(StoreError, match="no iteration -1"):
        ledger.nodes(-1)
    with pytest.raises(StoreError, match="cannot name a node"):
        ledger.head(1, "../sft")
    store.write("iterations/v1/sft.json", b"{")
    with pytest.raises(StoreError, match=r"iterations/v1/sft\.json .* is damaged"):
        ledger.head(1, "sft")


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    store = Store.open(tmp_path / "home")
    keys = [f"{number:064x}" for number in range(12)]
    for key in keys:
        commit(store, tmp_path, key, "same")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: Ledger(store).set_head(1, "sft", key), keys))
    assert sorted(entry.key for entry in Ledger(store).history(1, "sft")) == keys


def test_iteration_names():
    assert [iteration_name(version) for version in (0, 1, 12)] == ["base", "v1", "v12"]


def test_a_rollback_stands_for_the_key_it_replaced(store, tmp_path):
    ledger = Ledger(store)
    for key in KEYS[:2]:
        commit(store, tmp_path, key, key)
        ledger.set_head(1, "sft", key)
    first = ledger.history(1, "sft")[0]
    ledger.roll_back(1, "sft", first)
    assert (ledger.head(1, "sft"), len(ledger.history(1, "sft"))) == (KEYS[0], 3)
    assert ledger.standing_key(1, "sft", KEYS[1]) == KEYS[0]
    assert ledger.standing_key(1, "sft", KEYS[2]) == KEYS[2]  # other settings
    assert ledger.standing_key(2, "sft", KEYS[1]) == KEYS[1]  # another version
    ledger.set_head(1, "sft", KEYS[1])
    assert ledger.standing_key(1, "sft", KEYS[1]) == KEYS[1]


def test_a_rollback_brings_back_outputs_that_another_run_of_the_key_replaced(store, tmp_path):
    ledger = Ledger(store)
    refs = []
    for text in ("one", "two"):
        refs.append(commit(store, tmp_path, KEYS[0], text))
        for version in (1, 2):
            ledger.set_head(version, "sft", KEYS[0])
    assert next(iter(store.superseded().values())).outputs == {"model": refs[0]}
    ledger.roll_back(1, "sft", ledger.history(1, "sft")[0])
    assert store.recorded(KEYS[0]).outputs == {"model": refs[0]}
    for version in (1, 2):  # one key, one result, wherever it stands
        assert ledger.history(version, "sft")[-1].outputs == {"model": refs[0]}
    assert store.recorded_with(KEYS[0], {"model": refs[1]}).outputs == {"model": refs[1]}


def test_what_is_removed_is_gone_and_the_rest_stays(store, tmp_path):
    kept, unwanted = (commit(store, tmp_path, key, key) for key in KEYS[:2])
    assert store.usage(f"objects/{unwanted.digest}").num_bytes == 64
    assert store.usage(f"objects/{unwanted.digest}.json").modified_at > 1e9
    assert store.usage("objects/none") == (0, 0)
    for name in (f"manifests/{KEYS[1]}.json", f"objects/{unwanted.digest}.json"):
        store.remove(name)
    store.remove(f"objects/{unwanted.digest}")
    store.remove(f"objects/{unwanted.digest}")
    assert store.finished_keys() == KEYS[:1]
    assert store.objects() == [kept.digest]
    assert (store.holds(kept), store.holds(unwanted)) == (True, False)
