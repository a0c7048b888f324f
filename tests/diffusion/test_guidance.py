"""What guidance must do to an output, and how often it may call the network."""

import pytest
import torch

from smidgen.diffusion.guidance import guide

NULL = 9
X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([5, 5, 5])
Y = torch.tensor([0, 4, 7])


def network(x, t, y):
    """(3, 8, 2, 2): noise and variance that differ with every argument."""
    label = (y + 1.0).reshape(-1, 1, 1, 1)
    step = t.reshape(-1, 1, 1, 1) / 10
    return torch.cat([torch.sin(label * x) + step, torch.cos(label + x)], dim=1)


CONDITIONAL = network(X, T, Y)
UNCONDITIONAL = network(X, T, torch.full_like(Y, NULL))


@pytest.mark.parametrize("channels", ["all", "first-three"])
def test_scale_one_is_the_conditional_network_called_once(channels):
    calls = []

    def counted(x, t, y):
        calls.append(y)
        return network(x, t, y)

    assert torch.equal(guide(counted, Y, NULL, 1.0, channels)(X, T), CONDITIONAL)
    assert len(calls) == 1
    assert torch.equal(calls[0], Y)


def test_scale_zero_is_the_unconditional_noise():
    output = guide(network, Y, NULL, 0.0)(X, T)
    assert torch.allclose(output[:, :4], UNCONDITIONAL[:, :4])


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize(("channels", "num_guided"), [("all", 4), ("first-three", 3)])
def test_guided_channels_extrapolate_and_the_rest_is_conditional(scale, channels, num_guided):
    output = guide(network, Y, NULL, scale, channels)(X, T)
    expected = (1 - scale) * UNCONDITIONAL + scale * CONDITIONAL
    assert output.shape == CONDITIONAL.shape
    assert torch.allclose(output[:, :num_guided], expected[:, :num_guided], atol=1e-5)
    assert torch.equal(output[:, num_guided:], CONDITIONAL[:, num_guided:])


def test_an_output_without_variance_is_guided_alike():
    output = guide(lambda x, t, y: network(x, t, y)[:, :4], Y, NULL, 2.0)(X, T)
    assert torch.allclose(output, guide(network, Y, NULL, 2.0)(X, T)[:, :4])


def test_a_reduced_precision_network_is_guided_at_the_precision_of_the_latents():
    reduced = guide(lambda x, t, y: network(x, t, y).bfloat16(), Y, NULL, 4.0)(X, T)
    difference = CONDITIONAL.bfloat16().float() - UNCONDITIONAL.bfloat16().float()
    expected = UNCONDITIONAL.bfloat16().float() + 4.0 * difference
    assert reduced.dtype == torch.float32
    assert torch.allclose(reduced[:, :4], expected[:, :4])


def test_another_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="batch of 2 for 3 labels"):
        guide(network, Y, NULL, 2.0)(X[:2], T[:2])
