from types import SimpleNamespace

import torch

from smidgen.training import runtime
from smidgen.training.config import TrainingConfig


def optimizer_with_gradient(gradient):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor(gradient)
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def test_gradients_are_scaled_down_to_the_largest_norm_and_their_norm_is_told():
    for largest, expected in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0]), (None, [3.0, 4.0])):
        parameter, optimizer = optimizer_with_gradient([3.0, 4.0])
        plain = SimpleNamespace(scaler=None)
        norm = runtime.clipped_norm(plain, optimizer, [parameter], largest)
        assert norm.item() == 5.0
        torch.testing.assert_close(parameter.grad, torch.tensor(expected))


def fp16():
    """An accelerator as it is with fp16, which accelerate itself refuses on a CPU."""
    return SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=64.0))


def test_fp16_clips_what_is_no_longer_scaled_and_leaves_out_an_overflowed_step():
    accelerator = fp16()
    accelerator.scaler.scale(torch.zeros(()))  # as the first backward does
    parameter, optimizer = optimizer_with_gradient([3.0 * 64, 4.0 * 64])
    assert runtime.clipped_norm(accelerator, optimizer, [parameter], 1.0).item() == 5.0
    runtime.optimizer_step(accelerator, optimizer)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, -0.8]))

    before = parameter.detach().clone()
    parameter.grad = torch.tensor([torch.inf, 1.0])
    runtime.clipped_norm(accelerator, optimizer, [parameter], 1.0)
    runtime.optimizer_step(accelerator, optimizer)
    assert torch.equal(parameter.detach(), before)
    assert accelerator.scaler.get_scale() == 32.0

    resumed = fp16()
    runtime.restore_scaler(resumed, runtime.scaler_state(accelerator))
    resumed.scaler.scale(torch.zeros(()))
    assert resumed.scaler.get_scale() == 32.0


def test_the_precision_of_one_run_does_not_bind_the_next(tmp_path):
    for precision in ("fp32", "bf16", "fp32"):
        config = TrainingConfig(precision=precision, trackers=())
        cpu = torch.device("cpu")
        with runtime.open_runtime(config, cpu, tmp_path, 0) as accelerator:
            with accelerator.autocast():
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def test_the_tracker_writes_where_the_run_is(tmp_path):
    config = TrainingConfig(precision="fp32")
    with runtime.open_runtime(config, torch.device("cpu"), tmp_path, 0) as accelerator:
        accelerator.log({"loss": 0.5}, step=1)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_threads_are_set_for_the_run_only():
    before = torch.get_num_threads()
    with runtime.cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
