"""What a reward model that goes on from the version before is trained on."""

from typing import Any

from data_contracts.ratings import Domain
from stages.reward_model import Config, mixture, newest_with_replay

REF = {"digest": "0" * 64, "kind": "checkpoint"}
TABLE = {"digest": "1" * 64, "kind": "preferences/1.0"}


def config(**settings: Any) -> Config:
    given = {"domain": "safety", "init_from": REF, "continue_from": REF, "preferences": []}
    return Config.model_validate({**given, "open_preferences": TABLE, **settings})


def rows(domain: Domain, batch: int, count: int, source: str = "own") -> list[dict[str, Any]]:
    ids = [f"{source}-{domain}-{batch}-{i}" for i in range(count)]
    return [
        {
            "id": name,
            "domain": domain,
            "batch": batch,
            "split": "train",
            "messages": [{"role": "user", "content": f"Question {name}"}],
        }
        for name in ids
    ]


OWN = [row for week in (1, 2, 3) for domain in Domain for row in rows(domain, week, 10)]
OPEN = [row for domain in Domain for row in rows(domain, 0, 100, "open")]


def test_all_of_the_newest_batch_and_a_replay_of_the_rest():
    found = newest_with_replay(config(newest_share=0.25), mixture(config(), OWN, OPEN))
    ids = [row["id"] for row in found]
    assert len(ids) == len(set(ids)) == 40
    newest = {f"own-safety-3-{i}" for i in range(10)}
    assert newest <= set(ids)
    assert not any(i.startswith("own-safety-3") for i in ids if i not in newest)
    assert {i.split("-")[0] for i in ids if i not in newest} == {"own", "open"}


def test_the_replay_is_another_one_every_week_and_the_same_when_made_again():
    settings = config(newest_share=0.5)
    week_3 = newest_with_replay(settings, mixture(settings, OWN, OPEN))
    assert week_3 == newest_with_replay(settings, mixture(settings, OWN, OPEN))
    until_2 = [row for row in OWN if row["batch"] < 3]
    week_2 = newest_with_replay(settings, mixture(settings, until_2, OPEN))
    replays = [{r["id"] for r in found[10:]} for found in (week_2, week_3)]
    assert len(replays[0]) == len(replays[1]) == 10
    assert replays[0] != replays[1]


def test_a_replay_is_at_most_all_there_is():
    everything = mixture(config(), OWN, OPEN)
    alone = newest_with_replay(config(newest_share=1.0), everything)
    assert [row["id"] for row in alone] == [f"own-safety-3-{i}" for i in range(10)]
    assert len(newest_with_replay(config(newest_share=0.001), everything)) == len(everything)


def test_what_one_table_holds_out_no_other_trains_on():
    """Weekly batches and open-source data are split apart, and may hold the same questions."""
    own, open_source = rows(Domain.safety, 1, 4), rows(Domain.safety, 0, 4, "open")
    own[0] |= {"split": "test"}
    open_source[0] |= {"messages": [{"role": "user", "content": "  question OWN-safety-1-0 "}]}
    open_source[1] |= {"split": "test", "messages": own[1]["messages"]}
    found = [row["id"] for row in mixture(config(), own, open_source)]
    assert found == ["own-safety-1-2", "own-safety-1-3", "open-safety-0-2", "open-safety-0-3"]
