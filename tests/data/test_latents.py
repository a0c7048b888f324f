"""Draws from posteriors: their statistics, their randomness, and rows that lie in several parts."""

import pytest
import torch

from smidgen.data.latents import LatentSet, MappedRows


def example(num_images: int = 5, num_views: int = 1) -> LatentSet:
    generator = torch.Generator().manual_seed(7)
    shape = (num_images, num_views, 4, 2, 3)
    return LatentSet(
        mean=torch.randn(shape, generator=generator),
        std=torch.rand(shape, generator=generator) + 0.1,
        class_numbers=torch.arange(num_images) * 10,
        names=tuple(f"{number}.png" for number in range(num_images)),
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_have_the_posteriors_mean_and_deviation() -> None:
    latents = example()
    num_draws = 20_000
    drawn, labels = latents.draw([3] * num_draws, seeded())
    assert labels.unique().tolist() == [30]
    std = latents.std[3, 0]
    # Five standard errors of a mean and of a standard deviation.
    assert ((drawn.mean(0) - latents.mean[3, 0]).abs() < 5 * std / num_draws**0.5).all()
    assert ((drawn.std(0) - std).abs() < 5 * std / (2 * num_draws) ** 0.5).all()


def test_every_draw_is_fresh_and_the_generator_decides_it() -> None:
    latents = example()
    generator = seeded(1)
    first, second = (latents.draw([0, 1], generator)[0] for _ in range(2))
    assert not torch.isclose(first, second).any()
    generator = seeded(1)
    again = [latents.draw(torch.tensor([0, 1]), generator)[0] for _ in range(2)]
    assert torch.equal(again[0], first)
    assert torch.equal(again[1], second)
    assert not torch.equal(latents.draw([0, 1], seeded(2))[0], first)


def test_without_deviation_a_draw_is_the_mean_with_its_label() -> None:
    latents = example()
    sure = LatentSet(
        mean=latents.mean,
        std=torch.zeros_like(latents.std),
        class_numbers=latents.class_numbers,
        names=latents.names,
    )
    drawn, labels = sure.draw([4, 0, 4], seeded())
    assert torch.equal(drawn, latents.mean[[4, 0, 4], 0])
    assert labels.tolist() == [40, 0, 40]
    assert sure.shape(torch.tensor([4, 0])) == (4, 2, 3)
    assert len(sure) == 5


def test_both_views_are_drawn_equally_often() -> None:
    latents = example(num_views=2)
    sure = LatentSet(
        mean=latents.mean,
        std=latents.std * 0,
        class_numbers=latents.class_numbers,
        names=latents.names,
    )
    drawn, _ = sure.draw([2] * 4000, seeded())
    second = (drawn == latents.mean[2, 1]).flatten(1).all(1)
    assert torch.equal(drawn[~second], latents.mean[2, 0].expand(int((~second).sum()), 4, 2, 3))
    # Five standard deviations of a fair coin.
    assert abs(second.float().mean() - 0.5) < 5 * 0.5 / 4000**0.5


def test_rows_in_several_parts_are_drawn_as_from_one_tensor() -> None:
    whole = example(num_images=7, num_views=2)
    part_of = torch.tensor([1, 0, 2, 1, 0, 2, 2])
    row_of = torch.tensor([1, 0, 2, 0, 1, 1, 0])

    def split(tensor: torch.Tensor) -> MappedRows:
        parts = [torch.empty(n, *tensor.shape[1:]) for n in (2, 2, 3)]
        for image, (part, row) in enumerate(zip(part_of, row_of, strict=True)):
            parts[part][row] = tensor[image]
        return MappedRows(parts, part_of, row_of)

    mean, std = split(whole.mean), split(whole.std)
    assert mean.shape == whole.mean.shape
    assert torch.equal(mean.to_tensor(), whole.mean)
    apart = LatentSet(mean=mean, std=std, class_numbers=whole.class_numbers, names=whole.names)
    indices = [6, 0, 0, 3, 2, 5, 1, 4]
    for one, other in zip(
        whole.draw(indices, seeded(3)), apart.draw(indices, seeded(3)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mapped", [(), ("first",), ("second",), ("first", "second")])
def test_class_images_stand_behind_the_others_in_memory_or_not(mapped):
    generator = torch.Generator().manual_seed(0)
    sizes = {"first": 3, "second": 4}
    tensors = {n: torch.randn(size, 2, 1, 2, 2, generator=generator) for n, size in sizes.items()}

    def rows(name):
        if name not in mapped:
            return tensors[name]
        order = torch.arange(sizes[name]).flip(0)  # the file has them the other way round
        return MappedRows([tensors[name].flip(0)], torch.zeros_like(order), order)

    first, second = (
        LatentSet(
            mean=rows(name),
            std=rows(name),
            class_numbers=torch.zeros(size, dtype=torch.long),
            names=tuple(f"{name} {number}" for number in range(size)),
            captions=((name,),) * size,
        )
        for name, size in sizes.items()
    )
    both = first.with_class_images(second)
    assert (len(both), both.num_own) == (7, 3)
    assert both.captions == (("first",),) * 3 + (("second",),) * 4
    images, views = torch.tensor([6, 0, 3, 2, 6]), torch.tensor([1, 0, 0, 1, 0])
    expected = torch.cat([*tensors.values()])[images, views]
    assert torch.equal(both.mean[images, views], expected)
