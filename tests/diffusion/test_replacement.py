"""What is put back between steps, against the formulas of the papers."""

import torch

from smidgen.diffusion.replacement import low_frequencies, outside, refined


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, 3, 4, 6, generator=generator, dtype=torch.float64)


def test_outside_of_the_mask_is_the_known_image():
    x, y = images()
    mask = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    mask[..., 2:] = 1
    found = outside(x, y, mask)
    assert torch.equal(found[..., :2], y[..., :2])
    assert torch.equal(found[..., 2:], x[..., 2:])


def test_low_frequencies_are_means_of_squares_and_stay_as_they_are():
    x, _ = images()
    low = low_frequencies(x, 2)
    torch.testing.assert_close(low[0, 1, 3, 4], x[0, 1, 2:4, 4:6].mean())
    torch.testing.assert_close(low_frequencies(low, 2), low)


def test_a_refined_image_has_the_low_frequencies_of_one_and_the_rest_of_the_other():
    x, y = images()
    found = refined(x, y, 2)
    torch.testing.assert_close(low_frequencies(found, 2), low_frequencies(y, 2))
    torch.testing.assert_close(found - low_frequencies(found, 2), x - low_frequencies(x, 2))
