"""Does an iteration of PPO cost less than one of TRL's PPOTrainer?

    python -m benchmarks.ppo

Twice: in fp32, and in bf16 with fp32 masters. Each side has the micro-batch that is its fastest in
fp32.

One lap is an iteration of `stages.ppo.run`: sample a response to each prompt, score it, one pass
of updates with one optimizer step. Counted are the tokens of prompts and responses.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.artifacts import prompt_rows, publish_model, publish_table
from benchmarks.artifacts import tokenizer as new_tokenizer
from benchmarks.benchmark import Benchmark, main
from benchmarks.peers import PPO_TRAINER
from benchmarks.shapes import (
    MEDIUM,
    SMALL,
    Floor,
    Precision,
    backbone_flops,
    output_flops,
    policy,
    reward_model,
)
from benchmarks.sides import Side
from benchmarks.stage_work import TimedWork, timed_work
from benchmarks.turns import Turns
from kernels.model import ModelConfig
from stages import ppo
from stages.runtime.settings import EngineSettings
from stages.text.dialogue import render_prompt

_NEVER = 10**9


@dataclass(frozen=True)
class Size:
    """One iteration."""

    model: ModelConfig = SMALL
    num_prompts: int = 32
    prompt_length: int = 64
    max_new_tokens: int = 128
    precision: Precision = "fp32"
    micro_batch_size: int = 16
    peers_micro_batch_size: int = 8
    """With 16 or 32 PPOTrainer takes 2 to 4 % longer on two cores."""


class TimedIterations(TimedWork):
    """Counts an iteration's tokens, and keeps the time of its phases."""

    size: Size

    def amount(self, extra: dict[str, Any]) -> float:
        """Tokens of all prompts and responses."""
        length = self.size.prompt_length + self.metrics["ppo/response_tokens"]
        return self.size.num_prompts * length

    def facts(self) -> dict[str, float]:
        """Seconds by phase."""
        return {
            name.removeprefix("time/"): seconds
            for name, seconds in self.metrics.items()
            if name.startswith("time/")
        }


def ours(turns: Turns, size: Size) -> None:
    """The stage."""
    with timed_work(turns, TimedIterations, "iteration") as work:
        assert isinstance(work, TimedIterations)
        work.size = size
        ppo.run(stage_config(size, turns.num_laps, work), work)


def stage_config(size: Size, num_iterations: int, work: TimedWork) -> ppo.Config:
    """The stage's settings, its inputs published in the store."""
    rows = prompt_rows(size.num_prompts + 2, size.prompt_length, size.model.vocab_size)
    for row in rows[size.num_prompts :]:
        row["split"] = "validation"
    domains = ("helpfulness", "safety")
    scorer = publish_model(work.store, reward_model(size.model))
    return ppo.Config(
        policy=publish_model(work.store, policy(size.model)),
        helpfulness_rm=scorer,
        safety_rm=scorer,
        prompts=publish_table(work.store, "prompts", rows),
        num_iterations=num_iterations,
        num_prompts=dict.fromkeys(domains, size.num_prompts // 2),
        num_held_out_prompts=dict.fromkeys(domains, 1),
        batch_size=size.num_prompts,
        mini_batch_size=size.num_prompts,
        micro_batch_size=size.micro_batch_size,
        max_new_tokens=size.max_new_tokens,
        engine=EngineSettings(precision=size.precision),
        evaluate_every=_NEVER,
        checkpoint_every=_NEVER,
    )


def trainer(turns: Turns, size: Size) -> None:
    """One pass over the batch, one optimizer step, two reward models: our work."""
    _train(turns, size, num_epochs=1, is_gated=True)


def trainer_with_autocast(turns: Turns, size: Size) -> None:
    """Our work, sampling and scoring under autocast too; what does not train has bf16 weights.

    Without autocast's cache, which would keep the policy's weights of before the first update.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        _train(turns, size, num_epochs=1, is_gated=True, frozen_dtype=torch.bfloat16)


def trainer_with_one_scorer(turns: Turns, size: Size) -> None:
    """The same updates on the scores of one reward model, all that TRL takes by itself."""
    _train(turns, size, num_epochs=1, is_gated=False)


def trainer_by_default(turns: Turns, size: Size) -> None:
    """TRL's four passes."""
    _train(turns, size, num_epochs=4, is_gated=False)


def _train(
    turns: Turns,
    size: Size,
    num_epochs: int,
    is_gated: bool,
    frozen_dtype: torch.dtype = torch.float32,
) -> None:
    import datasets
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from benchmarks.hugging_face import (
        GatedTwins,
        Laps,
        causal_twin,
        common_arguments,
        reward_twin,
        tokenizer,
    )

    micro_batch_size = min(size.peers_micro_batch_size, size.num_prompts)
    rows = prompt_rows(size.num_prompts, size.prompt_length, size.model.vocab_size)
    vocabulary = new_tokenizer(size.model.vocab_size)
    data = [{"input_ids": render_prompt(row["messages"], vocabulary)} for row in rows]
    model = causal_twin(policy(size.model))
    scorer = reward_twin(reward_model(size.model))
    if is_gated:
        scorer = GatedTwins(scorer, reward_twin(reward_model(size.model)))
    num_tokens = size.num_prompts * (size.prompt_length + size.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            **common_arguments(turns, folder, size.precision),
            learning_rate=1e-6,
            total_episodes=turns.num_laps * size.num_prompts,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=size.num_prompts // micro_batch_size,
            num_mini_batches=1,
            num_ppo_epochs=num_epochs,
            response_length=size.max_new_tokens,
            temperature=1.0,
            kl_coef=0.01,
            num_sample_generations=0,
            gradient_checkpointing=False,
        )
        PPOTrainer(
            arguments,
            processing_class=tokenizer(size.model.vocab_size),
            model=model,
            ref_model=causal_twin(policy(size.model)).to(frozen_dtype),
            reward_model=scorer.to(frozen_dtype),
            value_model=reward_twin(reward_model(size.model)),
            train_dataset=datasets.Dataset.from_list(data),
            callbacks=[Laps(turns, lambda: num_tokens)],
        ).train()


def floor(size: Size) -> Floor:
    """Sample once, score once, update once.

    Forward passes: sampling, two log-probs, value and two rewards (TRL takes the policy's own
    log-probs from sampling); forward and backward: policy and value. Output layer on response
    tokens.
    """
    length = size.prompt_length + size.max_new_tokens
    response_share = size.max_new_tokens / length
    backbone = backbone_flops(size.model, length / 2, response_share)
    scorer = backbone_flops(size.model, length / 2, 1 / length)
    output = response_share * output_flops(size.model)
    forward = 3 * (backbone + output) + backbone + 2 * scorer
    update = 3 * (2 * backbone + output)
    return Floor(forward + update, "sampling, five measuring passes, update of two models")


IN_FP32 = Benchmark(
    name="ppo",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    sides=(
        Side("ours", ours, "stages.ppo, two reward models behind the gate"),
        Side(
            "PPOTrainer",
            trainer,
            "num_ppo_epochs=1, micro-batches accumulated to one step, two reward models behind a "
            "gate: the same updates on the same scores",
            PPO_TRAINER,
            target=3.0,
        ),
        Side(
            "PPOTrainer, one scorer",
            trainer_with_one_scorer,
            "the same updates, one reward model, as PPOTrainer comes",
            PPO_TRAINER,
        ),
        Side(
            "PPOTrainer, four passes",
            trainer_by_default,
            "num_ppo_epochs=4, its default: more updates, reported for completeness",
            PPO_TRAINER,
        ),
    ),
    floor=floor,
    remarks=(
        "Ours measures the old log-probs with the trainer, TRL takes them from sampling; responses "
        "of ours may end early (one token in 4,096), TRL's are all cut off at the limit."
    ),
)

IN_BF16 = dataclasses.replace(
    IN_FP32,
    name="ppo-bf16",
    size=Size(precision="bf16"),
    on_gpu=Size(MEDIUM, 64, 256, 256, "bf16", micro_batch_size=32, peers_micro_batch_size=32),
    sides=(
        IN_FP32.sides[0],
        Side(
            "PPOTrainer",
            trainer,
            "bf16=True as it comes: its Accelerator is not told, and it computes in fp32",
            PPO_TRAINER,
        ),
        Side(
            "PPOTrainer, autocast",
            trainer_with_autocast,
            "all of it under torch.autocast in bf16, reference and reward models with bf16 weights",
            PPO_TRAINER,
            target=3.0,
        ),
    ),
)

BENCHMARKS = (IN_FP32, IN_BF16)

if __name__ == "__main__":
    main(*BENCHMARKS)
