import torch

from smidgen.training.randomness import STREAMS, Shuffle, Streams, derived_seed


def test_each_epoch_visits_every_image_once_and_batches_are_full():
    indices = torch.tensor([3, 5, 7, 11, 13])
    order = Shuffle(indices, seed=0)
    taken = torch.cat([order.take(3) for _ in range(5)])  # 15 = three epochs
    for epoch in taken.split(5):
        assert sorted(epoch.tolist()) == indices.tolist()
    assert not torch.equal(taken[:5], taken[5:10])
    assert (order.epoch, order.position) == (2, 5)


def test_a_batch_larger_than_the_data_spans_epochs():
    assert sorted(Shuffle(torch.arange(2), seed=0).take(6).tolist()) == [0, 0, 0, 1, 1, 1]


def test_seeking_goes_on_as_if_never_stopped():
    whole = Shuffle(torch.arange(7), seed=4)
    whole.take(10)
    resumed = Shuffle(torch.arange(7), seed=4)
    resumed.seek(whole.epoch, whole.position)
    assert torch.equal(whole.take(20), resumed.take(20))


def test_the_order_depends_on_the_seed():
    first, second = (Shuffle(torch.arange(50), seed=seed).take(50) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_streams_differ_from_each_other_and_restore():
    streams = Streams(seed=0)
    state = streams.state()
    draws = [torch.rand(4, generator=getattr(streams, name)) for name in STREAMS]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(STREAMS)
    streams.restore(state)
    again = [torch.rand(4, generator=getattr(streams, name)) for name in STREAMS]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))


def test_derived_seeds_do_not_collide_in_what_a_cpu_generator_keeps():
    seeds = {
        derived_seed(seed, "order", epoch) % 2**32 for seed in range(20) for epoch in range(99)
    }
    assert len(seeds) == 20 * 99
