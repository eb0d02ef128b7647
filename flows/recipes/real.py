"""Public data in its publishers' formats, two weekly batches, on two cores in under 40 minutes.

rlhf run --recipe real --data DIR
"""

from pathlib import Path

from data_contracts.ratings import Domain
from flows.recipe import Recipe
from flows.sources import UNKNOWN
from stages.collect_preferences import CollectPreferencesSettings
from stages.evaluate import EvaluateSettings
from stages.ghost_attention import GhostAttentionSettings
from stages.importers.source import Format, Role, Source
from stages.ingest import IngestSettings
from stages.models.finetuning import FinetuningSettings
from stages.ppo import PpoSettings
from stages.pretrain import ModelSettings, PretrainSettings
from stages.rejection_sampling import RejectionSamplingSettings
from stages.reward_model import RewardModelSettings
from stages.safety_distillation import SafetyDistillationSettings
from stages.sample_pairs import SamplePairsSettings
from stages.sft import SftSettings
from stages.tokenizer import TokenizerSettings

SEQUENCE_LENGTH = 384
CONTEXT = 1024
MAX_NEW_TOKENS = 160
NUM_BATCHES = 2


def recipe() -> Recipe:
    """Four pretraining sources with weights, GSM8K and Alpaca SFT, AlpacaEval and HH pairs."""
    return Recipe(
        name="real",
        description="Public data: GSM8K, Alpaca, AlpacaEval, HH-RLHF and four text sources",
        product="real",
        num_versions=NUM_BATCHES,
        ppo_from_version=2,
        bag_all_from_version=2,
        rejection_sampling_start="previous",
        gatt_from_version=2,
        safety_distillation_from_version=2,
        ingest=ingest(),
        tokenizer=TokenizerSettings(vocab_size=4096),
        pretrain=PretrainSettings(
            model=ModelSettings(
                dim=128,
                n_layers=3,
                n_heads=4,
                n_kv_heads=4,
                ffn_hidden=344,
                max_seq_len=CONTEXT,
            ),
            source_weights={
                "state_union": 0.15,
                "movie_reviews": 0.4,
                "abc_news": 0.35,
                "shakespeare": 0.1,
            },
            num_tokens=3_000_000,
            sequence_length=256,
            global_batch_size=16,
            micro_batch_size=16,
            learning_rate=3e-3,
            warmup_steps=50,
            checkpoint_every=100,
        ),
        sft=SftSettings(
            learning_rate=5e-4,
            sequence_length=SEQUENCE_LENGTH,
            global_batch_size=16,
            micro_batch_size=4,
            num_epochs=1,
            overlong="drop",
        ),
        # preferences are imported here: for recipes that extend this one and ask annotators
        sample_pairs=SamplePairsSettings(max_new_tokens=MAX_NEW_TOKENS, overlong="drop"),
        collect_preferences=CollectPreferencesSettings(method="imported", num_batches=NUM_BATCHES),
        # 0.5 in the paper, whose other pairs are mostly helpfulness: here all are about safety
        helpfulness_rm=reward_model().model_copy(update={"other_share": 0.3}),
        # 1,900 pairs: one pass is not enough for a small model to learn what a label means, and
        # with smaller steps two trainings of it agree more
        safety_rm=reward_model().model_copy(update={"num_epochs": 3, "learning_rate": 2e-4}),
        ghost_attention=GhostAttentionSettings(
            # the dialogues of several turns are HH-RLHF's, and those are in the safety domain
            num_prompts={Domain.helpfulness: 60, Domain.safety: 80},
            max_turns=3,
            num_lists=4,
            max_new_tokens=MAX_NEW_TOKENS,
        ),
        safety_distillation=SafetyDistillationSettings(
            num_prompts=100, max_new_tokens=MAX_NEW_TOKENS, overlong="drop"
        ),
        rejection_sampling=RejectionSamplingSettings(
            num_red_team_prompts=20,
            # so small a Safety RM is no judge of what is safe enough, only of what is safer
            drop_all_unsafe=False,
            num_prompts={Domain.helpfulness: 150, Domain.safety: 150},
            num_samples=6,
            max_new_tokens=MAX_NEW_TOKENS,
            overlong="drop",
            finetuning=FinetuningSettings(
                learning_rate=2e-4,
                sequence_length=SEQUENCE_LENGTH,
                global_batch_size=16,
                micro_batch_size=4,
            ),
        ),
        ppo=PpoSettings(
            num_iterations=8,
            num_prompts={Domain.helpfulness: 500, Domain.safety: 500},
            batch_size=64,
            mini_batch_size=32,
            micro_batch_size=16,
            max_new_tokens=MAX_NEW_TOKENS,
            learning_rate=2e-5,
            value_learning_rate=1e-4,
            num_value_warmup_iterations=2,
            kl_beta=0.05,
            num_held_out_prompts={Domain.helpfulness: 48, Domain.safety: 48},
            evaluate_every=4,
            overlong="drop",
        ),
        evaluate=EvaluateSettings(
            num_prompts={Domain.helpfulness: 80, Domain.safety: 120},
            max_new_tokens=MAX_NEW_TOKENS,
            overlong="drop",
        ),
    )


def reward_model() -> RewardModelSettings:
    """Both reward models; long answers are cut so that they fit.

    They read all the context that there is: AlpacaEval's annotators like long answers, and of two
    that are cut neither looks longer.
    """
    return RewardModelSettings(
        learning_rate=5e-4,
        global_batch_size=32,
        micro_batch_size=8,
        max_tokens=CONTEXT,
        overlong="truncate",
    )


def ingest() -> IngestSettings:
    """Nine files below the data folder, in the formats in which their publishers ship them."""
    return IngestSettings(
        sources=(
            source("state_union", "pretrain", "documents", "jsonl_text"),
            source("movie_reviews", "pretrain", "documents", "jsonl_text"),
            source("abc_news", "pretrain", "documents", "jsonl_text"),
            source("shakespeare", "pretrain", "documents", "jsonl_text"),
            source("gsm8k_train", "sft", "demonstrations", "qa"),
            source("alpaca_seed_tasks", "sft", "demonstrations", "alpaca"),
            source("alpaca_eval_outputs", "sft", "demonstrations", "alpaca"),
            source(
                "alpaca_eval_annotations",
                "preferences",
                "preferences",
                "alpaca_eval",
                Domain.helpfulness,
            ),
            source("hh_harmless_base", "preferences", "preferences", "hh", Domain.safety),
        ),
        test_fraction=0.15,
        validation_fraction=0.05,
        prompts_from=("alpaca_eval_annotations", "hh_harmless_base"),
    )


def source(
    name: str, folder: str, role: Role, file_format: Format, domain: Domain | None = None
) -> Source:
    """One gzipped JSON-lines file; rows with an empty answer are left out and counted."""
    return Source(
        name=name,
        path=Path(folder, f"{name}.jsonl.gz"),
        sha256=UNKNOWN,
        role=role,
        format=file_format,
        domain=domain,
        skip_empty=True,
    )
