"""Ways in which a resume can be wrong, to be planted into a run: the matrix must catch each."""

import json
from collections.abc import Callable
from typing import Any

import torch

from stages import ppo, reward_model
from stages.models import corpus, finetuning
from stages.models.batches import shuffled as in_seeded_order
from stages.runtime import checkpoints, engine, workdir
from stages.runtime.checkpoints import Checkpointer, Resumed
from stages.runtime.engine import Engine


def moments_start_at_zero() -> None:
    def forget(self: Engine) -> None:
        for state in self._adamw.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()

    _after_restoring_an_engine(forget)


def bias_correction_starts_over() -> None:
    def forget(self: Engine) -> None:
        for state in self._adamw.state.values():
            state["step"].zero_()

    _after_restoring_an_engine(forget)


def schedule_starts_over() -> None:
    def forget(self: Engine) -> None:
        self.num_steps = 0

    _after_restoring_an_engine(forget)


def weights_are_rounded() -> None:
    """To bf16, in which a run may keep its weights, and not its masters."""
    pieces = Engine.pieces

    def rounded(self: Engine) -> dict[str, torch.Tensor]:
        return {name: piece.bfloat16().float() for name, piece in pieces(self).items()}

    engine.Engine.pieces = rounded


def a_batch_is_skipped() -> None:
    _resume_as(lambda resumed: resumed._replace(step=resumed.step + bool(resumed.step)))


def controllers_start_over() -> None:
    _resume_as(lambda resumed: resumed._replace(extra={}))


def critic_starts_over() -> None:
    load = Checkpointer._load

    def without_critic(self: Checkpointer, folder: Any, engines: Any) -> Resumed:
        return load(self, folder, {name: e for name, e in engines.items() if name != "value"})

    Checkpointer._load = without_critic


def data_order_is_drawn_from_a_global_generator() -> None:
    """And its state is not in the checkpoint."""

    def drawn(num_items: int, *seed: int) -> Any:
        return in_seeded_order(num_items, int(torch.randint(1 << 30, ())))

    for module in (ppo, reward_model, finetuning, corpus):
        module.shuffled = drawn
    checkpoints.restore_random_states = lambda states: None


def metrics_of_steps_done_again_stand_twice() -> None:
    def all_of_them(store: Any, key: str) -> list[dict[str, Any]]:
        spools = [attempt / workdir.METRICS_FILE for attempt in store.attempts(key)]
        return [json.loads(line) for spool in spools for line in spool.read_text().splitlines()]

    workdir.read_metrics = all_of_them


def _after_restoring_an_engine(then: Callable[[Engine], None]) -> None:
    restore = Engine.restore

    def restored(self: Engine, *arguments: Any) -> None:
        restore(self, *arguments)
        then(self)

    Engine.restore = restored


def _resume_as(change: Callable[[Resumed], Resumed]) -> None:
    restore = Checkpointer.restore

    def restored(self: Checkpointer, engines: Any) -> Resumed:
        return change(restore(self, engines))

    Checkpointer.restore = restored


BUGS: dict[str, tuple[Callable[[], None], str]] = {
    bug.__name__: (bug, stage)
    for bug, stage in (
        (moments_start_at_zero, "pretrain"),
        (bias_correction_starts_over, "sft"),
        (schedule_starts_over, "reward_model"),
        (weights_are_rounded, "pretrain"),
        (a_batch_is_skipped, "sft"),
        (data_order_is_drawn_from_a_global_generator, "reward_model"),
        (controllers_start_over, "ppo"),
        (critic_starts_over, "ppo"),
        (metrics_of_steps_done_again_stand_twice, "sft"),
    )
}
"""By name: what plants it, and the stage to see it in."""
