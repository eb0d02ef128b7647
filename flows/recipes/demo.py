"""The sandbox: a world of its own through five weeks, on two cores in minutes."""

from pathlib import Path

from data_contracts.ratings import Domain
from flows.recipe import Recipe
from flows.sources import UNKNOWN
from stages.collect_preferences import CollectPreferencesSettings
from stages.evaluate import EvaluateSettings
from stages.importers.source import Source
from stages.ingest import IngestSettings
from stages.models.finetuning import FinetuningSettings
from stages.ppo import PpoSettings
from stages.pretrain import ModelSettings, PretrainSettings
from stages.rejection_sampling import RejectionSamplingSettings
from stages.reward_model import RewardModelSettings
from stages.sample_pairs import SamplePairsSettings
from stages.sandbox.world import WorldSettings
from stages.sft import SftSettings
from stages.tokenizer import TokenizerSettings

MAX_NEW_TOKENS = 40
CONTEXT = 128
SEQUENCE_LENGTH = 96
SEARCH_TEMPERATURES = (0.8, 1.0, 1.2)
MAX_TEST_PAIRS = 500


def recipe() -> Recipe:
    """V1 to V4 by rejection sampling, V5 with PPO on top, as in the paper (§3.2.3).

    The bag of best samples is everything from V4 on. The gold judge says whether it worked.
    """
    return Recipe(
        name="demo",
        description="The embedded sandbox: raw text to RLHF-V5, no network, no GPU",
        product="sandbox",
        num_versions=5,
        ppo_from_version=5,
        bag_all_from_version=4,
        rejection_sampling_start="previous",
        # from the chat model on all batches, every week's would take half of the time
        reward_model_start="previous",
        world=WorldSettings(num_documents=44_000, num_demonstrations=6_000, num_open_pairs=20_000),
        ingest=ingest(),
        tokenizer=TokenizerSettings(vocab_size=768),
        pretrain=PretrainSettings(
            # larger models and batches learn less of the text in the time that there is
            model=ModelSettings(
                dim=96,
                n_layers=3,
                n_heads=6,
                n_kv_heads=6,
                ffn_hidden=256,
                max_seq_len=CONTEXT,
            ),
            num_tokens=2_000_000,
            sequence_length=64,
            global_batch_size=16,
            micro_batch_size=16,
            learning_rate=4e-3,
            warmup_steps=50,
        ),
        sft=SftSettings(
            learning_rate=1e-3,
            sequence_length=SEQUENCE_LENGTH,
            global_batch_size=32,
            micro_batch_size=32,
            num_epochs=3,
        ),
        sample_pairs=SamplePairsSettings(
            num_prompts={Domain.helpfulness: 1000, Domain.safety: 400},
            max_new_tokens=MAX_NEW_TOKENS,
        ),
        collect_preferences=CollectPreferencesSettings(method="simulated"),
        helpfulness_rm=RewardModelSettings(
            learning_rate=1e-3,
            global_batch_size=32,
            micro_batch_size=32,
            # 800 own pairs a week are too few: most of the mix is open-source-like
            other_share=0.95,
            newest_share=0.2,
            max_tokens=CONTEXT,
            max_test_pairs=MAX_TEST_PAIRS,
        ),
        safety_rm=RewardModelSettings(
            learning_rate=1e-3,
            global_batch_size=32,
            micro_batch_size=32,
            # with the paper's 0.1 the gate fires on harmless prompts here
            helpfulness_share=0.3,
            newest_share=0.2,
            max_tokens=CONTEXT,
            max_test_pairs=MAX_TEST_PAIRS,
        ),
        rejection_sampling=RejectionSamplingSettings(
            num_prompts={Domain.helpfulness: 600, Domain.safety: 200},
            num_samples=8,
            search_temperatures=SEARCH_TEMPERATURES,
            num_search_prompts={Domain.helpfulness: 32, Domain.safety: 16},
            max_new_tokens=MAX_NEW_TOKENS,
            finetuning=FinetuningSettings(
                learning_rate=5e-4,
                sequence_length=SEQUENCE_LENGTH,
                global_batch_size=32,
                micro_batch_size=32,
            ),
        ),
        ppo=PpoSettings(
            num_iterations=25,
            num_prompts={Domain.helpfulness: 2000, Domain.safety: 1000},
            batch_size=256,
            micro_batch_size=64,
            max_new_tokens=MAX_NEW_TOKENS,
            learning_rate=5e-5,
            value_learning_rate=1e-3,
            num_value_warmup_iterations=3,
            kl_beta=0.05,
            whiten_by="domain",
            num_held_out_prompts={Domain.helpfulness: 128, Domain.safety: 64},
            evaluate_every=5,
            show_samples_every=5,
        ),
        evaluate=EvaluateSettings(
            num_prompts={Domain.helpfulness: 600, Domain.safety: 300},
            max_new_tokens=MAX_NEW_TOKENS,
            independent_judge="sandbox",
        ),
        # its writers show neither instructions nor preprompts; those of recipe `dialogue` do
        gatt_from_version=None,
        safety_distillation_from_version=None,
    )


def ingest() -> IngestSettings:
    """The world's four files; their paths stand in the folder that sandbox_world wrote."""
    return IngestSettings(
        sources=(
            Source(
                name="world",
                path=Path("documents.jsonl"),
                sha256=UNKNOWN,
                role="documents",
                format="jsonl_text",
                source_field="source",
            ),
            Source(
                name="writers",
                path=Path("demonstrations.jsonl"),
                sha256=UNKNOWN,
                role="demonstrations",
                format="chat",
            ),
            Source(
                name="users",
                path=Path("prompts.jsonl"),
                sha256=UNKNOWN,
                role="prompts",
                format="prompts",
            ),
            Source(
                name="open",
                path=Path("open_preferences.jsonl"),
                sha256=UNKNOWN,
                role="open_preferences",
                format="pairs",
            ),
        ),
        test_fraction=0.2,
        validation_fraction=0.1,
    )
