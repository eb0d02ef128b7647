"""The paper's four sizes (Table 1). Everything else is the settings classes' defaults."""

from dataclasses import dataclass

from flows.recipe import LaunchSettings, Recipe
from stages.evaluate import EvaluateSettings
from stages.ghost_attention import GhostAttentionSettings
from stages.models.finetuning import FinetuningSettings
from stages.ppo import PpoSettings
from stages.pretrain import ModelSettings, PretrainSettings
from stages.rejection_sampling import RejectionSamplingSettings
from stages.reward_model import RewardModelSettings
from stages.runtime.engine import EngineSettings
from stages.safety_distillation import SafetyDistillationSettings
from stages.sample_pairs import SamplePairsSettings
from stages.sft import SftSettings

GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Size:
    """What differs between the sizes."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_hidden: int
    pretraining_learning_rate: float
    reward_model_learning_rate: float
    kl_beta: float
    pretraining_gpu_hours: int
    """On A100-80GB (Table 2); the planner's assumed utilisation comes from it."""
    reward_model_micro_batch_size: int
    generation_batch_size: int
    """Both so that the stage fits where it can: 7B on 8 A100-80GB, the others on 64."""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """What tells the architectures apart."""
        return (self.dim, self.n_layers, self.n_heads, self.n_kv_heads, self.ffn_hidden)


SIZES = {
    "7b": Size(4096, 32, 32, 32, 11008, 3.0e-4, 1e-5, 0.01, 184_320, 8, 16),
    "13b": Size(5120, 40, 40, 40, 13824, 3.0e-4, 1e-5, 0.01, 368_640, 8, 16),
    "34b": Size(8192, 48, 64, 8, 22016, 1.5e-4, 1e-5, 0.005, 1_038_336, 4, 16),
    "70b": Size(8192, 80, 64, 8, 28672, 1.5e-4, 5e-6, 0.005, 1_720_320, 2, 2),
}


def llama2(name: str) -> Recipe:
    """The paper's run at one size: five versions, PPO at V5. Its user supplies the sources."""
    size = SIZES[name]
    engine = EngineSettings(zero_stage=3, precision="bf16", activation_checkpointing=True)
    rows = size.generation_batch_size
    reward_model = RewardModelSettings(
        learning_rate=size.reward_model_learning_rate,
        micro_batch_size=size.reward_model_micro_batch_size,
        engine=engine,
    )
    return Recipe(
        name=name,
        description=f"Llama 2 {name.upper()} as published; supply the sources in a file with "
        f"`extends: {name}`",
        product=f"llama2-{name}",
        launch=LaunchSettings(num_processes=GPUS_PER_MACHINE),
        pretrain=PretrainSettings(
            model=ModelSettings(
                dim=size.dim,
                n_layers=size.n_layers,
                n_heads=size.n_heads,
                n_kv_heads=size.n_kv_heads,
                ffn_hidden=size.ffn_hidden,
            ),
            learning_rate=size.pretraining_learning_rate,
            engine=engine,
        ),
        sft=SftSettings(engine=engine),
        sample_pairs=SamplePairsSettings(generation_batch_size=rows, engine=engine),
        helpfulness_rm=reward_model,
        safety_rm=reward_model,
        ghost_attention=GhostAttentionSettings(generation_batch_size=rows, engine=engine),
        safety_distillation=SafetyDistillationSettings(generation_batch_size=rows, engine=engine),
        rejection_sampling=RejectionSamplingSettings(
            generation_batch_size=rows, finetuning=FinetuningSettings(engine=engine)
        ),
        ppo=PpoSettings(kl_beta=size.kl_beta, generation_batch_size=rows, engine=engine),
        evaluate=EvaluateSettings(generation_batch_size=rows, engine=engine),
    )
