"""Sizes at which every finding runs in seconds. Its numbers are noise; that it runs is the test."""

from data_contracts.ratings import Domain
from paper.scale import Scale

TINY = Scale(
    seeds=(1,),
    num_seeds_of_long=1,
    first_week={Domain.helpfulness: 60, Domain.safety: 40},
    later_weeks={Domain.helpfulness: 24, Domain.safety: 16},
    rejection_sampling={Domain.helpfulness: 12, Domain.safety: 8},
    num_samples=2,
    ppo_iterations=2,
    ppo_batch=16,
    test_prompts={Domain.helpfulness: 16, Domain.safety: 12},
    test_answers=2,
    sweep_prompts={Domain.helpfulness: 4},
    sweep_samples=16,
    ghost_attention={Domain.helpfulness: 24},
    distilled_prompts=12,
    changes={
        "world": {
            "num_documents": 400,
            "num_demonstrations": 160,
            "num_prompts": 800,
            "num_open_pairs": 120,
            "conversations": {
                "num_instructed": 40,
                "num_dialogues": 60,
                "num_preprompted": 40,
                "num_documents": 100,
            },
        },
        "tokenizer": {"vocab_size": 512},
        "pretrain": {
            "model": {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden": 64},
            "num_tokens": 81_920,
            "warmup_steps": 2,
            "num_validation_sequences": 8,
        },
        # until most answers end: only such are learnt by what follows
        "sft": {"num_epochs": 8, "learning_rate": 3e-3, "overlong": "drop"},
        "rejection_sampling": {"finetuning": {"num_epochs": 1}},
        "ppo": {
            "mini_batch_size": 8,
            "micro_batch_size": 8,
            "num_value_warmup_iterations": 1,
            "evaluate_every": 1,
            "num_held_out_prompts": {Domain.helpfulness: 8, Domain.safety: 8},
        },
    },
)
