"""Ask a model the same prompts many times, at several temperatures, and score every answer.

    python -m paper.stages.probe --config probe.json --home RLHF_HOME

What the figures over N and T need, and what the gold judge reads to say how good a model is.
Unlike rejection sampling it keeps equal samples of one prompt: N counts draws.
"""

from typing import Any

from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.ratings import Domain, Split
from kernels.generation import Sampling
from kernels.model import CausalLM
from stages.models.batches import seed_from
from stages.models.folders import load_sampler
from stages.models.prompts import PromptCounts, select_prompts
from stages.models.rewards import RewardModels
from stages.models.sampling import fitting_prompts, sample_responses
from stages.runtime.engine import EngineSettings
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.text.tokenizer import Tokenizer

VERSION = "1"


class Config(StageConfig):
    """A model, the prompts it is asked, and who scores."""

    policy: ArtifactRef
    helpfulness_rm: ArtifactRef
    safety_rm: ArtifactRef
    prompts: ArtifactRef
    split: Split = Split.test
    num_prompts: PromptCounts
    num_samples: int = Field(default=1, gt=0)
    """Answers to each prompt at each temperature."""
    temperatures: tuple[float, ...] = (1.0,)
    max_new_tokens: int = Field(default=40, gt=0)
    gate_threshold: float = Field(default=0.15, gt=0, lt=1)


def run(config: Config, work: WorkDir) -> StageOutput:
    """Sample and score, one temperature after the other."""
    engine = EngineSettings()
    policy, tokenizer = load_sampler(work, config.policy, engine)
    wanted = select_prompts(
        work.table(config.prompts, "prompts"),
        config.split,
        config.num_prompts,
        seed_from(config.seed, "probe"),
    )
    room = policy.config.max_seq_len - config.max_new_tokens
    prompts, tokens = fitting_prompts(wanted, tokenizer, room, "error")
    reward_models = RewardModels.load(
        work, config.helpfulness_rm, config.safety_rm, config.gate_threshold, engine
    )
    rows: list[dict[str, Any]] = []
    for temperature in config.temperatures:
        rows += answers(
            config, work, temperature, prompts, tokens, (policy, tokenizer), reward_models
        )
    return StageOutput({"samples": table_output(work, "samples", "scored_samples", rows)})


def answers(
    config: Config,
    work: WorkDir,
    temperature: float,
    prompts: list[dict[str, Any]],
    tokens: list[list[int]],
    model: tuple[CausalLM, Tokenizer],
    reward_models: RewardModels,
) -> list[dict[str, Any]]:
    """All answers at one temperature as rows of the scored_samples table, none marked best."""
    policy, tokenizer = model
    repeated = [t for t in tokens for _ in range(config.num_samples)]
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=temperature)
    seed = seed_from(config.seed, "probe", temperature)
    samples = sample_responses(policy, repeated, sampling, tokenizer, seed, work, 256)
    asked = [row for row in prompts for _ in range(config.num_samples)]
    scores = reward_models.score(
        [t + s.tokens for t, s in zip(repeated, samples, strict=True)],
        [row["domain"] == Domain.safety for row in asked],
        work,
    )
    return [
        {
            "sample_id": f"{prompt['prompt_id']}-{temperature:g}-{i % config.num_samples}",
            **{name: prompt[name] for name in ("prompt_id", "domain", "category", "messages")},
            "version": 0,
            "response": sample.text,
            "response_tokens": sample.tokens,
            "temperature": temperature,
            "finished": sample.finished,
            "helpfulness_score": float(scores.helpfulness[i]),
            "safety_score": float(scores.safety[i]),
            "reward": float(scores.reward[i]),
            "best": False,
        }
        for i, (prompt, sample) in enumerate(zip(asked, samples, strict=True))
    ]


if __name__ == "__main__":
    main(Config, run)
