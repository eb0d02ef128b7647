"""How large the experiments are: a recipe for each seed, and the sizes of the probes.

Everything not named here is the demo recipe's, so that the findings are about what users run.
"""

from dataclasses import dataclass, field
from typing import Any

from data_contracts.ratings import Domain
from flows.recipe import Recipe, merged
from flows.recipes import demo, dialogue
from stages.pretrain import ModelSettings

Counts = dict[Domain, int]
"""Prompts by domain."""


@dataclass(frozen=True)
class Scale:
    """Sizes of one run of `make paper`."""

    seeds: tuple[int, ...]
    num_seeds_of_long: int
    """The first so many are those of findings that take long; see `Finding.takes_long`."""
    first_week: Counts
    """Prompts of the first batch of preferences: the pool of the reward-model findings."""
    later_weeks: Counts
    rejection_sampling: Counts
    num_samples: int
    """K of rejection sampling."""
    ppo_iterations: int
    """Of V5 and of each ablation."""
    ppo_batch: int
    test_prompts: Counts
    """Held-out prompts on which the gold judge looks at a model; the world has 840 and 370."""
    test_answers: int
    """A model's answers to each of them."""
    sweep_prompts: Counts
    """Held-out prompts that are sampled many times."""
    sweep_samples: int
    """Samples for each of them, at each temperature."""
    ghost_attention: Counts
    """Prompts that are joined to Ghost Attention's dialogues."""
    distilled_prompts: int
    """Adversarial prompts of context distillation: a quarter of the harmless ones beside them."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Other values of the recipe, nested as in a recipe's file."""


FULL = Scale(
    seeds=(1, 2, 3, 4, 5, 6, 7, 8),
    num_seeds_of_long=5,
    first_week={Domain.helpfulness: 2700, Domain.safety: 1400},
    later_weeks={Domain.helpfulness: 350, Domain.safety: 240},
    rejection_sampling={Domain.helpfulness: 400, Domain.safety: 150},
    num_samples=6,
    ppo_iterations=20,
    ppo_batch=160,
    test_prompts={Domain.helpfulness: 800, Domain.safety: 360},
    test_answers=2,
    sweep_prompts={Domain.helpfulness: 160},
    sweep_samples=16,
    ghost_attention={Domain.helpfulness: 1500},
    distilled_prompts=100,
)
QUICK = Scale(
    seeds=(1,),
    num_seeds_of_long=1,
    first_week={Domain.helpfulness: 1600, Domain.safety: 800},
    later_weeks={Domain.helpfulness: 200, Domain.safety: 150},
    rejection_sampling={Domain.helpfulness: 240, Domain.safety: 100},
    num_samples=4,
    ppo_iterations=10,
    ppo_batch=128,
    test_prompts={Domain.helpfulness: 240, Domain.safety: 120},
    test_answers=1,
    sweep_prompts={Domain.helpfulness: 40},
    sweep_samples=16,
    ghost_attention={Domain.helpfulness: 1000},
    distilled_prompts=60,
)

MODEL_SIZES: dict[str, ModelSettings] = {
    "small": ModelSettings(
        dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_hidden=88, max_seq_len=demo.CONTEXT
    ),
    # 176 and not 172, which is 8/3 of 64: a CPU takes five times as long for rows of 172 floats
    "medium": ModelSettings(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=4, ffn_hidden=176, max_seq_len=demo.CONTEXT
    ),
}
"""The smaller models of Figure 6 and of distillation; the demo's own is the large one."""


def recipe(scale: Scale, seed: int) -> Recipe:
    """The pipeline of one seed: V1-V4 by rejection sampling, V5 with PPO on top (§3.2.3)."""
    base = demo.recipe()
    assert base.world is not None
    sized = base.model_copy(
        update={
            "name": "paper",
            "product": "paper",
            "seed": seed,
            "num_versions": 5,
            "ppo_from_version": 5,
            "world": base.world.model_copy(update={"num_open_pairs": 5_000}),
            "sample_pairs": base.sample_pairs.model_copy(update={"num_prompts": scale.later_weeks}),
            "collect_preferences": base.collect_preferences.model_copy(
                update={"test_fraction": 0.4}
            ),
            # 0.5 in the paper, whose open-source pairs are mostly about helpfulness; half of the
            # world's are about safety. As many steps as with the demo's share, on own pairs.
            "helpfulness_rm": base.helpfulness_rm.model_copy(
                update={"other_share": 0.3, "num_epochs": 2}
            ),
            "rejection_sampling": base.rejection_sampling.model_copy(
                update={
                    "num_prompts": scale.rejection_sampling,
                    "num_samples": scale.num_samples,
                }
            ),
            "ppo": base.ppo.model_copy(
                update={
                    "num_iterations": scale.ppo_iterations,
                    "batch_size": scale.ppo_batch,
                    "learning_rate": 1e-4,  # for fewer and smaller iterations than the demo's
                    "num_held_out_prompts": {Domain.helpfulness: 64, Domain.safety: 32},
                }
            ),
            "evaluate": base.evaluate.model_copy(update={"num_prompts": scale.test_prompts}),
        }
    )
    return changed(sized, scale)


def dialogue_recipe(scale: Scale, seed: int) -> Recipe:
    """The pipeline of Ghost Attention and context distillation: as far as a Safety RM."""
    base = dialogue.recipe()
    assert base.evaluate.retention is not None
    sized = base.model_copy(
        update={
            "name": "paper-dialogue",
            "product": "paper",
            "seed": seed,
            "sample_pairs": base.sample_pairs.model_copy(
                update={"num_prompts": scale.later_weeks | {Domain.safety: 400}}
            ),
            "ghost_attention": base.ghost_attention.model_copy(
                update={"num_prompts": scale.ghost_attention}
            ),
            "safety_distillation": base.safety_distillation.model_copy(
                update={"num_prompts": scale.distilled_prompts}
            ),
        }
    )
    return changed(sized, scale)


def changed(sized: Recipe, scale: Scale) -> Recipe:
    """A recipe with the scale's other values."""
    if not scale.changes:
        return sized
    return Recipe.model_validate(merged(sized.model_dump(mode="json"), scale.changes))
