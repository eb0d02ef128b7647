"""Names of the events that runs emit, and that automations of the Prefect server listen for."""

GATE_FAILED = "rlhf.gate.failed"
"""A model of an iteration did not pass its gates."""
STAGE_STALLED = "rlhf.stage.stalled"
"""A stage has not moved for `launch.stalled_minutes`."""
