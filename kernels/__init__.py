"""Tensors in, tensors out: model, attention, losses, PPO maths and generation. Torch only."""
