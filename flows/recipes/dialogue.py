"""The sandbox with dialogues: instructions that must last, preprompts that make answers safe.

Its writers also follow instructions, hold dialogues and obey preprompts. An instruction is followed
in the turn that gives it and forgotten in the next, until Ghost Attention at V2.
"""

from data_contracts.ratings import Domain
from flows.recipe import Recipe
from flows.recipes import demo
from stages.ghost_attention import GhostAttentionSettings
from stages.models.instructions import Attribute
from stages.models.retention import RetentionSettings
from stages.safety_distillation import SafetyDistillationSettings
from stages.sandbox.conversations import ConversationSettings
from stages.sandbox.instructions import VALUES, WORDING
from stages.sandbox.preprompts import GENERIC, TEMPLATES

CONTEXT = 256
"""Tokens: six turns with an instruction before each."""
MAX_NEW_TOKENS = 48
"""The longest answer of the world, with a greeting before it and two sentences after."""


def recipe() -> Recipe:
    """V1 as in the demo; V2 learns both stages' demonstrations; no PPO."""
    base = demo.recipe()
    assert base.world is not None
    finetuning = base.rejection_sampling.finetuning
    return base.model_copy(
        update={
            "name": "dialogue",
            "description": "The sandbox with dialogues: Ghost Attention and safety distillation",
            "product": "dialogue",
            "num_versions": 2,
            "ppo_from_version": 3,
            "gatt_from_version": 2,
            "safety_distillation_from_version": 2,
            "world": base.world.model_copy(
                update={
                    "num_documents": 25_000,
                    "num_demonstrations": 3_000,
                    "num_open_pairs": 6_000,
                    "conversations": ConversationSettings(
                        num_instructed=1_500,
                        num_dialogues=2_500,
                        num_preprompted=1_000,
                        num_documents=4_000,
                    ),
                }
            ),
            "pretrain": base.pretrain.model_copy(
                update={
                    "model": base.pretrain.model.model_copy(update={"max_seq_len": CONTEXT}),
                    "num_tokens": 1_200_000,
                }
            ),
            "sft": base.sft.model_copy(
                update={
                    "sequence_length": CONTEXT,
                    "global_batch_size": 16,
                    "micro_batch_size": 16,
                    "overlong": "drop",
                }
            ),
            "ghost_attention": GhostAttentionSettings(
                num_prompts={Domain.helpfulness: 2_000},
                max_turns=5,
                attributes=attributes(),
                instruction_as="user_message",
                max_new_tokens=MAX_NEW_TOKENS,
            ),
            "safety_distillation": SafetyDistillationSettings(
                num_prompts=600,
                preprompts=(GENERIC,),
                templates=TEMPLATES,
                max_new_tokens=MAX_NEW_TOKENS,
            ),
            "rejection_sampling": base.rejection_sampling.model_copy(
                update={
                    "num_red_team_prompts": 100,
                    "finetuning": finetuning.model_copy(
                        update={
                            "sequence_length": CONTEXT,
                            "global_batch_size": 16,
                            "micro_batch_size": 16,
                        }
                    ),
                }
            ),
            "evaluate": base.evaluate.model_copy(
                update={
                    "max_new_tokens": MAX_NEW_TOKENS,
                    "retention": RetentionSettings(
                        num_dialogues=60, num_turns=6, attributes=attributes()
                    ),
                }
            ),
        }
    )


def attributes() -> tuple[Attribute, ...]:
    """What the world's writers know how to keep; nobody is asked for more."""
    return tuple(
        Attribute(name=name, instruction=full, short=short, values=VALUES[name])
        for name, (full, short) in WORDING.items()
    )
