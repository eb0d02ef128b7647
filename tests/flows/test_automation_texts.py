"""What automations say, by Prefect's own templates, and what its server makes of them."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.events.actions import CallWebhook
from prefect.server.events.schemas.automations import AutomationCreate
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import render_user_template

from flows.events import GATE_FAILED, STAGE_STALLED
from flows.standing.automations import LATE_PATIENCE, _crashing, _notifications

WEBHOOK = CallWebhook(block_document_id=uuid.uuid4())
REASON = 'a reason with "quotes", <brackets> and ümlauts\nin two lines'
RUN = {
    "prefect.resource.id": f"prefect.flow-run.{uuid.uuid4()}",
    "prefect.resource.name": "rlhf-v3",
    "prefect.state-name": "Failed",
    "prefect.state-message": REASON,
}
STAGE = {"prefect.resource.id": "rlhf.stage.v3-ppo"}


def received(name: str, resource: dict[str, str], payload: dict[str, Any]) -> ReceivedEvent:
    event = {"event": name, "resource": resource, "payload": payload, "id": uuid.uuid4()}
    now = datetime.now(UTC)
    return ReceivedEvent.model_validate(event | {"occurred": now, "received": now})


@pytest.mark.parametrize(
    ("name", "event", "text"),
    [
        ("failed", received("prefect.flow-run.Failed", RUN, {}), f"rlhf-v3 Failed: {REASON}"),
        (
            "late",
            received("prefect.flow-run.Late", RUN, {}),
            "rlhf-v3 is late: no worker has taken it for 0:10:00",
        ),
        (
            "stalled",
            received(STAGE_STALLED, STAGE, {"text": "v3/ppo has stood"}),
            "v3/ppo has stood",
        ),
        ("gate", received(GATE_FAILED, STAGE, {"text": "v3 did not pass"}), "v3 did not pass"),
    ],
    ids=["failed", "late", "stalled", "gate"],
)
def test_the_text_is_json_whatever_a_reason_holds(name: str, event: ReceivedEvent, text: str):
    made = {a.name: a for a in _notifications(WEBHOOK, LATE_PATIENCE)}
    (action,) = made[f"rlhf {name}"].actions
    assert isinstance(action, CallWebhook)
    sent = asyncio.run(render_user_template(action.payload, {"event": event}))
    assert json.loads(sent) == {"text": text}


def test_prefects_server_takes_every_automation():
    made = [*_notifications(WEBHOOK, LATE_PATIENCE), _crashing(timedelta(minutes=9))]
    for automation in made:
        AutomationCreate.model_validate(automation.model_dump(mode="json"))
    assert [a.name for a in made] == [
        f"rlhf {n}" for n in ("failed", "crashed", "late", "stalled", "gate", "heartbeat")
    ]
