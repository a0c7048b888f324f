import pytest
import torch

from smidgen.training.ema import decay_after, update_average


def test_the_decay_rises_to_its_limit():
    assert decay_after(0, None) == pytest.approx(1 / 10)
    assert decay_after(90, None) == pytest.approx(91 / 100)
    assert decay_after(10**7, None) == 0.9999
    assert decay_after(10**7, 0.99) == 0.99
    assert decay_after(5, 0.0) == 0.0


def test_without_its_warm_up_the_decay_is_the_same_from_the_first_update_on():
    assert [decay_after(n, None, warmup=False) for n in (0, 90, 10**7)] == [0.9999] * 3
    assert decay_after(0, 0.5, warmup=False) == 0.5


def test_the_average_is_the_weighted_sum_of_what_it_saw():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(4)]
    average = values[0].clone()
    for n, value in enumerate(values[1:]):
        update_average([average], [value], decay_after(n, None))
    d0, d1, d2 = 1 / 10, 2 / 11, 3 / 12
    expected = (
        d2 * d1 * d0 * values[0]
        + d2 * d1 * (1 - d0) * values[1]
        + d2 * (1 - d1) * values[2]
        + (1 - d2) * values[3]
    )
    torch.testing.assert_close(average, expected, rtol=0, atol=1e-14)
