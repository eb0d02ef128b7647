"""The weekly schedule: it fires, twice at once, and after weeks in which nobody was there."""

from datetime import UTC, datetime, timedelta

from drill.house import WEEKLY, House
from drill.row import Row, require

EVERY_MINUTE = "* * * * *"
WEEKLY_CRON = "0 3 * * 1"
_MISSED = 3
_SCHEDULER_LOOP = timedelta(seconds=80)
"""Prefect looks once a minute which runs are to come, and makes none for what is past."""


def fires(house: House) -> str:
    """The first minute's run makes V1, base and all; the later ones of that week are skipped."""
    weekly = house.prefect.deployment(WEEKLY)
    own = {"deployments": {"id": {"any_": [weekly["id"]]}}}

    def ended() -> list[str]:
        runs = house.prefect.runs(**own, flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
        return sorted(run["state_name"] for run in runs if run["auto_scheduled"])

    house.wait_until(lambda: len(ended()) > 1, "a scheduled run and the one after it")
    (schedule,) = weekly["schedules"]
    path = f"/deployments/{weekly['id']}/schedules/{schedule['id']}"
    house.prefect.call(path, {"active": False}, method="PATCH")
    for run in house.prefect.runs(**own, flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}}):
        # Late already, on a busy machine; the pause does not take it back
        house.prefect.set_state(run["id"], "CANCELLED", "Cancelled")
    house.wait_until(lambda: not house.prefect.at_work(), "later ones to end")
    states = ended()
    require(states.count("Completed") == 1 and set(states) == {"Completed", "Skipped"}, states)
    require(house.ledger.versions() == [0, 1], house.ledger.versions())
    house.cron = WEEKLY_CRON  # of the next `rlhf up`
    return f"{len(states)} fired, one made V1"


def two_at_once(house: House) -> str:
    """The second waits for the first, and then finds that the week has its iteration."""
    house.a_week_passes()
    version = house.ledger.versions()[-1] + 1
    return _one_of(house, [house.prefect.start(WEEKLY) for _ in range(2)], version)


def missed_weeks(house: House) -> str:
    """All that was missed while the pool was paused fires at once."""
    house.a_week_passes()
    version = house.ledger.versions()[-1] + 1
    prefect = house.prefect
    prefect.call("/work_pools/rlhf", {"is_paused": True}, method="PATCH")
    weekly = prefect.deployment(WEEKLY)
    begin = datetime.now(UTC) + _SCHEDULER_LOOP
    rule = f"DTSTART:{begin:%Y%m%dT%H%M%S}Z\nRRULE:FREQ=SECONDLY;INTERVAL=2;COUNT={_MISSED}"
    schedule = {"active": True, "schedule": {"rrule": rule, "timezone": "UTC"}}
    known = {run["id"] for run in prefect.runs()}
    prefect.call(f"/deployments/{weekly['id']}/schedules", [schedule])

    def missed() -> list[str]:
        return [
            run["id"]
            for run in prefect.runs(deployments={"id": {"any_": [weekly["id"]]}})
            if run["id"] not in known
            and datetime.fromisoformat(run["expected_start_time"]) < datetime.now(UTC)
        ]

    house.wait_until(lambda: len(missed()) == _MISSED, "schedules to be missed")
    prefect.call("/work_pools/rlhf", {"is_paused": False}, method="PATCH")
    return _one_of(house, missed(), version)


def _one_of(house: House, runs: list[str], version: int) -> str:
    done = [house.prefect.completed(run) for run in runs]
    states = sorted(run["state_name"] for run in done)
    require(states == ["Completed"] + ["Skipped"] * (len(runs) - 1), states)
    made = next(run for run in done if run["state_name"] == "Completed")
    require(made["name"] == f"rlhf-v{version}", made["name"])
    require(house.ledger.versions() == list(range(version + 1)), house.ledger.versions())
    overlaps = [
        run["name"]
        for run in done
        if run is not made and made["start_time"] < run["start_time"] < made["end_time"]
    ]
    require(not overlaps, f"{overlaps} ran beside it")
    return f"one made V{version}, {len(runs) - 1} skipped"


ROWS = (
    Row("schedule fires", fires, is_core=True),
    Row("two schedules at once", two_at_once, is_core=True),
    Row("missed weeks", missed_weeks),
)
