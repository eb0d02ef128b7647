"""What the Prefect server does by itself: who it tells of trouble, and which runs it calls crashed.

Told by one webhook, with a text that Slack, Mattermost and Teams' relays show as it is:

    failed    a run has failed
    crashed   its process is gone
    late      nobody has taken a run for a while
    stalled   a stage has said nothing for a while (`launch.stalled_minutes` of the recipe)
    gate      a model of an iteration did not pass a gate

A run whose process sends no heartbeats any more becomes Crashed; on one machine its worker notices
that by itself, so only `rlhf deploy` asks for it.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.events import GATE_FAILED, STAGE_STALLED

WEBHOOK_VARIABLE = "RLHF_WEBHOOK"
LATE_PATIENCE = timedelta(minutes=10)
"""A run is Late after 15 s already, which is nothing where it waits for another one to end."""
_BEATS = 3
"""Heartbeats that may be missed: a run that takes long to end sends none."""
_BLOCK = "rlhf"
_PREFIX = "rlhf "
_FLOW_RUNS: dict[str, Any] = {"prefect.resource.id": "prefect.flow-run.*"}
_EACH_RUN = {"prefect.resource.id"}


def register(
    client: SyncPrefectClient,
    webhook: str,
    *,
    heartbeats: bool,
    late: timedelta = LATE_PATIENCE,
) -> list[str]:
    """Make the server's automations these, and none of an earlier registration; their names."""
    wanted = list(_notifications(_save(webhook), late)) if webhook else []
    if heartbeats and (seconds := get_current_settings().flows.heartbeat_frequency):
        wanted.append(_crashing(timedelta(seconds=_BEATS * seconds)))
    names = {automation.name for automation in wanted}
    known = {a.name: a.id for a in client.read_automations() if a.name.startswith(_PREFIX)}
    for automation in wanted:
        if automation.name in known:
            client.update_automation(known[automation.name], automation)
        else:
            client.create_automation(automation)
    for name in known.keys() - names:
        client.delete_automation(known[name])
    return sorted(names)


def _save(url: str) -> CallWebhook:
    """Keep the address encrypted at the server; the action that calls it, without a text yet."""
    headers = SecretDict({"Content-Type": "application/json"})
    block = Webhook(url=SecretStr(url), headers=headers)
    saved = block.save(_BLOCK, overwrite=True)
    assert isinstance(saved, UUID), "outside of an event loop it is saved here and now"
    return CallWebhook(block_document_id=saved)


def _notifications(call: CallWebhook, late: timedelta) -> Iterator[AutomationCore]:
    name = "{{ event.resource['prefect.resource.name'] }}"
    run = f"{name} {{{{ event.resource['prefect.state-name'] }}}}"
    why = "{{ event.resource.get('prefect.state-message', '') }}"
    for state in ("Failed", "Crashed"):
        yield _telling(call, state.lower(), _seen(f"prefect.flow-run.{state}"), f"{run}: {why}")
    yield _telling(
        call,
        "late",
        EventTrigger(
            match=_FLOW_RUNS,
            after={"prefect.flow-run.Late"},
            expect={"prefect.flow-run.*"},
            for_each=_EACH_RUN,
            posture=Posture.Proactive,
            within=late,
        ),
        f"{name} is late: no worker has taken it for {late}",
    )
    yield _telling(call, "stalled", _seen(STAGE_STALLED), "{{ event.payload['text'] }}")
    yield _telling(call, "gate", _seen(GATE_FAILED), "{{ event.payload['text'] }}")


def _seen(event: str) -> EventTrigger:
    """A trigger of every such event."""
    return EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1)


def _telling(call: CallWebhook, name: str, trigger: EventTrigger, text: str) -> AutomationCore:
    """`text` is a template of Prefect's; what it gives is one string of the JSON that is sent."""
    payload = f'{{% set text %}}{text}{{% endset %}}{{"text": {{{{ text|string|tojson }}}}}}'
    action = call.model_copy(update={"payload": payload})
    return AutomationCore(name=f"{_PREFIX}{name}", trigger=trigger, actions=[action])


def _crashing(silence: timedelta) -> AutomationCore:
    return AutomationCore(
        name=f"{_PREFIX}heartbeat",
        description="A run whose process is gone does not stay Running",
        trigger=EventTrigger(
            match=_FLOW_RUNS,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            for_each=_EACH_RUN,
            posture=Posture.Proactive,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                message=f"Its process has been silent for {silence}",
                force=False,
            )
        ],
    )
