import math

import torch

from kernels.rope import positions_within, rotate, rotation_table

CPU = torch.device("cpu")


def rotate_half(x, angles):
    """Hugging Face's form: first half against second half."""
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def test_position_one_turns_the_first_pair_by_one_radian():
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])
    turned = rotate(x, rotation_table(2, 4, 100.0, CPU)[1:])
    second = 100.0 ** (-2 / 4)  # the angle of the second pair
    expected = [math.cos(1), math.sin(1), -2 * math.sin(second), 2 * math.cos(second)]
    torch.testing.assert_close(turned.flatten(), torch.tensor(expected))


def test_position_zero_changes_nothing():
    x = torch.randn(1, 3, 8)
    assert torch.equal(rotate(x, rotation_table(1, 8, 10_000.0, CPU)), x)


def test_equals_rotate_half_after_reordering():
    x = torch.randn(7, 2, 8)
    angles = torch.outer(torch.arange(7.0), 10_000.0 ** (-torch.arange(0, 8, 2) / 8))
    halves = rotate_half(x.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2), angles)
    expected = halves.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(rotate(x, rotation_table(7, 8, 10_000.0, CPU)), expected)


def test_bf16_is_rounded_once_at_the_end():
    x = torch.randn(50, 2, 8, dtype=torch.bfloat16)
    table = rotation_table(50, 8, 10_000.0, CPU)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


def test_a_table_made_during_inference_serves_training():
    with torch.inference_mode():
        table = rotation_table(11, 4, 123.0, CPU)
    x = torch.randn(11, 1, 4, requires_grad=True)
    rotate(x, table).sum().backward()
    assert x.grad is not None


def test_positions_within():
    assert positions_within(torch.tensor([2, 1, 3])).tolist() == [0, 1, 0, 0, 1, 2]
