"""A pytest plugin that turns one part of the product off before any test module imports it.

`TURNED_OFF=gate,kl pytest -p turned_off …`: what it names must then be noticed by a test.
"""

import os
from dataclasses import replace

import torch


def gate_off() -> None:
    import kernels.ppo

    kernels.ppo.safety_gate = lambda safety, is_safety_prompt, threshold=0.15: is_safety_prompt


def whitening_off() -> None:
    import stages.models.rewards

    stages.models.rewards.whitened = stages.models.rewards.raw_scores


def kl_off() -> None:
    import kernels.ppo

    with_kl = kernels.ppo.kl_shaped_rewards

    def without_kl(score, logprobs, ref_logprobs, lengths, beta, score_clip=None):
        return with_kl(score, logprobs, ref_logprobs, lengths, 0.0, score_clip)

    kernels.ppo.kl_shaped_rewards = without_kl


def margin_off() -> None:
    import kernels.losses

    with_margin = kernels.losses.ranking_loss

    def without_margin(chosen, rejected, margin):
        return with_margin(chosen, rejected, torch.zeros_like(margin))

    kernels.losses.ranking_loss = without_margin


def loss_mask_off() -> None:
    import stages.text.dialogue

    render = stages.text.dialogue.render_demonstration

    def unmasked(messages, tokenizer):
        rendered = render(messages, tokenizer)
        return replace(rendered, loss_mask=[True] * len(rendered.tokens))

    stages.text.dialogue.render_demonstration = unmasked


PARTS = {
    "gate": gate_off,
    "whitening": whitening_off,
    "kl": kl_off,
    "margin": margin_off,
    "loss_mask": loss_mask_off,
}

for part in filter(None, os.environ.get("TURNED_OFF", "").split(",")):
    PARTS[part]()
