import torch

from smidgen.models.calling import calling, dtype_of
from smidgen.models.labels import labels_of
from smidgen.training.config import TrainingConfig
from smidgen.training.objective import Task
from smidgen.training.randomness import Streams
from smidgen.training.validation import Validation
from tests.tiny.bases import tiny_base
from tests.training.test_loop import latent_set


def validation(base, indices=(1, 4, 6), batch_size=64):
    config = TrainingConfig(batch_size=batch_size)
    return Validation(
        latent_set(),
        torch.tensor(indices),
        Task(process=base.process, labels=labels_of(base)),
        config,
    )


def test_the_loss_is_the_same_each_time_and_whatever_the_batch_size():
    base = tiny_base()
    run = validation(base)
    network = calling(base.family, base.denoiser)
    first = run.loss(network, base.device, dtype_of(base.denoiser))
    assert run.loss(network, base.device, dtype_of(base.denoiser)) == first
    other = validation(base, batch_size=7).loss(network, base.device, torch.float32)
    assert abs(other - first) < 1e-5 * first  # rounding alone


def test_timesteps_are_stratified_and_all_images_take_part():
    (draws,) = validation(tiny_base())._draws
    count = len(draws.timesteps)
    assert count == 64
    for number, timestep in enumerate(sorted(draws.timesteps.tolist())):
        # one in each 64th of the schedule, rounded down
        assert number * 1000 / count - 1 < timestep < (number + 1) * 1000 / count
    held_out = latent_set().class_numbers[torch.tensor([1, 4, 6])]
    assert draws.labels.bincount().tolist() == [  # 64 draws of three images, as even as can be
        sum(n for n, label in zip((22, 21, 21), held_out.tolist(), strict=True) if label == value)
        for value in (0, 1)
    ]


def test_it_draws_nothing_from_the_streams_of_training():
    before = Streams(0).state()
    streams = Streams(0)
    validation(tiny_base())
    assert all(torch.equal(before[name], value) for name, value in streams.state().items())
