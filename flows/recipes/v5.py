"""The demo's world through five weeks: V1 to V4 by rejection sampling, V5 with PPO on top.

rlhf run --recipe v5
"""

from flows.recipe import Recipe
from flows.recipes import demo

SEARCH_TEMPERATURES = (0.8, 1.0, 1.2)


def recipe() -> Recipe:
    """The paper's five iterations; the bag of best samples is everything from V4 on."""
    base = demo.recipe()
    return base.model_copy(
        update={
            "name": "v5",
            "description": "The sandbox through five iterations, PPO at V5",
            "product": "v5",
            "num_versions": 5,
            "ppo_from_version": 5,
            "bag_all_from_version": 4,
            # from the chat model on all batches, every week's would take half of the time
            "reward_model_start": "previous",
            "helpfulness_rm": base.helpfulness_rm.model_copy(
                update={"other_share": 0.95, "newest_share": 0.3, "max_test_pairs": 500}
            ),
            "safety_rm": base.safety_rm.model_copy(
                update={"newest_share": 0.3, "max_test_pairs": 500}
            ),
            "rejection_sampling": base.rejection_sampling.model_copy(
                update={
                    "search_temperatures": SEARCH_TEMPERATURES,
                    "num_search_prompts": {"helpfulness": 32, "safety": 16},
                }
            ),
            "ppo": base.ppo.model_copy(update={"num_iterations": 25}),
        }
    )
