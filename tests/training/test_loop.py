import dataclasses
import json
import math
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from smidgen.core.delta import Delta
from smidgen.core.file import read_file, write_file
from smidgen.data.latents import LatentSet
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.training import loop, optimizer, runtime
from smidgen.training.compiled import check_compiler
from smidgen.training.config import TrainingConfig
from smidgen.training.interrupt import Interrupted
from smidgen.training.loop import Evaluator, learning_rate, train_delta
from smidgen.training.validation import Validation
from tests.tiny.bases import tiny_base

CLASSES = ("bee", "dog")
SHORT = {
    "steps": 12,
    "batch_size": 4,
    "checkpoint_every": 4,
    "validation_share": 0.2,
    "trackers": (),
}


def latent_set(num_images: int = 20, num_views: int = 1) -> LatentSet:
    generator = torch.Generator().manual_seed(3)
    shape = (num_images, num_views, 4, 4, 4)
    return LatentSet(
        mean=torch.randn(shape, generator=generator),
        std=torch.full(shape, 0.1),
        class_numbers=torch.arange(num_images) % 2,
        names=tuple(f"image-{number}" for number in range(num_images)),
    )


def build(base, method="difffit", seed=0) -> Delta:
    classes = CLASSES if base.host.has_labels else ()
    generator = torch.Generator().manual_seed(seed)
    return build_delta(method, base, configure(method), classes, generator)


def run(folder, method="difffit", latents=None, on_step=None, evaluators=(), **settings):
    base = tiny_base()
    config = TrainingConfig(**(SHORT | settings)).resolved(method)
    runtime.check_runtime(config, base.device)
    return train_delta(
        base,
        build(base, method),
        latents or latent_set(),
        config,
        folder,
        on_step=on_step,
        evaluators=evaluators,
    )


class Killed(Exception):
    pass


def stop_at(last):
    def on_step(step, loss):
        if step == last:
            raise Killed

    return on_step


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def final_files(folder):
    """What must be bit-equal after a resumed and an uninterrupted run."""
    paths = [folder / "delta.safetensors", *(folder / "deltas").iterdir()]
    paths += (folder / "checkpoints").glob("*/state.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


VARIANTS = [
    {},
    {"method": "full", "lr_schedule": "cosine", "warmup_steps": 3},
    {
        "gradient_accumulation": 2,
        "batch_size": 3,
        "validate_every": 3,
        "latents": latent_set(20, 2),
    },
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, variant):
    run(tmp_path / "whole", **variant)
    with pytest.raises(Killed):
        run(tmp_path / "cut", **variant, on_step=stop_at(7))
    result = run(tmp_path / "cut", **variant)
    assert result.first_step == 4
    assert final_files(tmp_path / "cut") == final_files(tmp_path / "whole")


def test_a_run_with_moments_of_one_byte_resumes_bit_equal_and_on_nothing_else(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(optimizer, "SMALLEST", 1)  # tiny tensors too
    settings = {"method": "full", "optimizer": "adamw-8bit", "weight_decay": 0.01}
    run(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        run(tmp_path / "cut", **settings, on_step=stop_at(7))
    kept = load_file(next((tmp_path / "cut" / "checkpoints").glob("*/state.safetensors")))
    assert {t.dtype for name, t in kept.items() if name.startswith("first/")} == {torch.uint8}
    assert run(tmp_path / "cut", **settings).first_step == 4
    assert final_files(tmp_path / "cut") == final_files(tmp_path / "whole")
    with pytest.raises(UsageError, match="of another method or version"):
        run(tmp_path / "cut", method="full", weight_decay=0.01, steps=13)


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(7))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')  # cut by the kill
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'\n{"step": "\xfe"}\n{"step": [1]}\n' + b"[" * 100_000 + b"\n")
    run(tmp_path)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8, 12]


def test_a_kill_while_the_log_is_shortened_loses_no_line(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(7))
    log, replace = tmp_path / "log.jsonl", Path.replace
    before = log.read_bytes()

    def dying(path, target):
        if Path(target) == log:
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            run(tmp_path)
    assert log.read_bytes() == before
    run(tmp_path)
    assert [line["step"] for line in read_log(tmp_path) if "loss" in line] == list(range(1, 13))


def test_a_finished_run_does_nothing_more(tmp_path):
    first = run(tmp_path)
    before = final_files(tmp_path)
    again = run(tmp_path)
    assert again.first_step == again.steps == 12
    assert final_files(tmp_path) == before
    assert torch.equal(
        torch.cat([p.flatten() for p in first.delta.parameters()]),
        torch.cat([p.flatten() for p in again.delta.parameters()]),
    )


def test_training_learns_and_leaves_the_base_as_it_was(tmp_path):
    base = tiny_base()
    base.denoiser.blocks[0].requires_grad_(True)
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    flags = [parameter.requires_grad for parameter in base.denoiser.parameters()]
    config = TrainingConfig(**(SHORT | {"steps": 60, "lr": 1e-2, "checkpoint_every": 20}))
    train_delta(base, build(base), latent_set(), config, tmp_path)
    lines = read_log(tmp_path)
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert losses[-1] < losses[0]
    after = base.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [parameter.requires_grad for parameter in base.denoiser.parameters()] == flags
    assert not any(module._forward_hooks for module in base.denoiser.modules())
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())


def test_the_delta_file_is_the_average_not_the_last_values(tmp_path):
    values = []
    base = tiny_base()
    delta = build(base)
    start = [p.detach().clone() for p in delta.parameters()]
    config = TrainingConfig(**(SHORT | {"steps": 2, "ema_decay": 0.05, "lr": 1e-3}))
    train_delta(
        base,
        delta,
        latent_set(),
        config,
        tmp_path,
        on_step=lambda *_: values.append([p.detach().clone() for p in delta.parameters()]),
    )
    saved = Delta.load(tmp_path / "delta.safetensors")
    for first, one, two, average in zip(start, *values, saved.parameters(), strict=True):
        expected = 0.05 * (0.05 * first + 0.95 * one) + 0.95 * two
        torch.testing.assert_close(average, expected, rtol=1e-6, atol=1e-7)
    assert saved.provenance.training["step"] == 2


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    # the streams deliver the same numbers in two portions or in one
    run(tmp_path / "one", batch_size=8, steps=4)
    run(tmp_path / "two", batch_size=4, gradient_accumulation=2, steps=4)
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for name in a.keys() - {"images_per_second"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"compile": True}])
def test_how_it_is_computed_does_not_change_what_is_trained(tmp_path, monkeypatch, settings):
    # the compiler's front end alone: code generation takes minutes and is PyTorch's affair
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(runtime, "check_compiler", lambda: None)
    run(tmp_path / "plain", steps=4)
    run(tmp_path / "other", steps=4, **settings)
    plain, other = (read_log(tmp_path / name) for name in ("plain", "other"))
    for a, b in zip(plain, other, strict=True):
        for name in a.keys() - {"images_per_second"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5)


def test_compiled_code_with_other_gradients_is_refused(tmp_path, monkeypatch):
    """As PyTorch 2.13 makes of an upsampling on a CPU, where half of a network is not trained."""

    class Half(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *arguments):
            output = self.network(*arguments)
            return (output + output.detach()) / 2

    monkeypatch.setattr(torch, "compile", Half)
    monkeypatch.setattr(runtime, "check_compiler", lambda: None)
    with pytest.raises(SmidgenError, match="wrong gradients of this network"):
        run(tmp_path, steps=2, compile=True)


def test_bf16_passes_leave_the_delta_in_float32(tmp_path):
    result = run(tmp_path, precision="bf16", steps=4)
    run(tmp_path / "exact", steps=4)
    assert {p.dtype for p in result.delta.parameters()} == {torch.float32}
    loss, expected = (read_log(folder)[0]["loss"] for folder in (tmp_path, tmp_path / "exact"))
    assert loss != expected
    assert loss == pytest.approx(expected, rel=0.02)  # bf16 has 8 bits: 0.4 %


def test_a_delta_that_would_be_trained_in_half_precision_is_refused(tmp_path):
    base = tiny_base().to(dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="load the base in float32"):
        train_delta(
            base, build(base, "full"), latent_set(), TrainingConfig(**SHORT, lr=1e-4), tmp_path
        )


def test_a_non_finite_loss_names_its_image_and_keeps_the_checkpoint(tmp_path):
    latents = latent_set()
    with pytest.raises(Killed):
        run(tmp_path, latents=latents, on_step=stop_at(5))
    good = final_files(tmp_path)
    latents.std[11] = math.nan  # not part of what tells whether the data are the same
    with pytest.raises(SmidgenError, match=r"image-11 is not finite \(step 4 is saved"):
        run(tmp_path, latents=latents, steps=40, validation_share=0.2)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["not_finite"] == ["image-11"]
    assert len(report["batch"]) == 4
    kept = final_files(tmp_path)
    assert {name: kept[name] for name in good} == good


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_first_and_the_run_resumes_bit_equal(tmp_path, number, code):
    def on_step(step, loss):
        if step == 6:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="stopped at step 6 of 12") as error:
        run(tmp_path / "cut", on_step=on_step)
    assert error.value.exit_code == code
    assert (tmp_path / "cut" / "checkpoints" / "step-6").is_dir()
    assert run(tmp_path / "cut").first_step == 6
    run(tmp_path / "whole")
    delta = "delta.safetensors"
    assert (tmp_path / "cut" / delta).read_bytes() == (tmp_path / "whole" / delta).read_bytes()


def test_old_checkpoints_and_deltas_go_but_the_best_stays(tmp_path, monkeypatch):
    found = iter([3.0, 1.0, 5.0, 2.0, 4.0])  # after steps 2, 4, 6, 8 and 10
    monkeypatch.setattr(Validation, "loss", lambda *_, **__: next(found))
    run(tmp_path, steps=10, checkpoint_every=2, keep_checkpoints=2, keep_deltas=2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-8", "step-10"}
    expected = {f"step-{step}.safetensors" for step in (4, 8, 10)}
    assert {path.name for path in (tmp_path / "deltas").iterdir()} == expected


def test_what_a_kill_left_half_written_is_ignored_and_removed(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(5))
    partial_checkpoint = tmp_path / "checkpoints" / "step-8.partial"
    shutil.copytree(tmp_path / "checkpoints" / "step-4", partial_checkpoint)
    (partial_checkpoint / "state.json").write_text("{")
    assert run(tmp_path).first_step == 4
    assert not partial_checkpoint.exists()


def without_origin(path):
    """The delta file as it was before tables knew which rows of the base theirs stand for."""
    header, tensors = read_file(path)
    assert [edit.pop("origin") for edit in header["edits"] if edit["kind"] == "table"]
    del header["format_version"]
    write_file(path, tensors, header)


def test_what_was_written_before_a_field_was_there_is_gone_on_from(tmp_path):
    run(tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        run(cut, on_step=stop_at(7))
    state = cut / "checkpoints" / "step-4" / "state.json"
    written = json.loads(state.read_text())
    del written["seconds"], written["scaler"]
    state.write_text(json.dumps(written))
    without_origin(cut / "delta.safetensors")
    assert run(cut).first_step == 4
    assert final_files(cut) == final_files(tmp_path / "whole")

    base, path = tiny_base(), cut / "delta.safetensors"
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([3, 700]), torch.tensor([0, 2])
    with torch.no_grad(), Delta.load(path).attach(base):
        expected = base.denoiser(x, t, y)
    without_origin(path)
    with torch.no_grad(), Delta.load(path).attach(base):
        assert torch.equal(base.denoiser(x, t, y), expected)


def test_a_checkpoint_of_other_edits_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(5))
    with pytest.raises(SmidgenError, match=r"lacks delta/.*start over there with force"):
        run(tmp_path, method="lora")


def test_a_damaged_checkpoint_and_other_data_are_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(5))
    with pytest.raises(UsageError, match="the images changed"):
        run(tmp_path, latents=latent_set(22))
    state = tmp_path / "checkpoints" / "step-4" / "state.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(state).items()}
    name = next(name for name in tensors if name.startswith("exp_avg/"))
    good = tensors[name].clone()
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, state)
    with pytest.raises(SmidgenError, match=f"damaged .{re.escape(name)} is not finite.; remove it"):
        run(tmp_path)
    save_file(tensors | {name: good}, state)
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(SmidgenError, match="step-4 is damaged"):
        run(tmp_path)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    good = {}

    def on_step(step, loss):
        if step == 5:
            good.update(final_files(tmp_path))
            # as a full disk does, the system now refuses to write a file of more than 1 kB
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))

    try:
        with pytest.raises(SmidgenError, match="cannot write"):
            run(tmp_path, on_step=on_step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert good
    assert final_files(tmp_path) == good
    run(tmp_path / "whole")
    assert run(tmp_path).first_step == 4
    assert (
        final_files(tmp_path)["delta.safetensors"]
        == (tmp_path / "whole" / "delta.safetensors").read_bytes()
    )


def test_evaluators_see_the_average_and_do_not_disturb_the_training(tmp_path):
    seen = []
    base = tiny_base()
    delta = build(base)

    def look(step):
        seen.append((step, [p.detach().clone() for p in delta.parameters()]))
        return {"metric": float(step)}

    config = TrainingConfig(**SHORT, lr=1e-3)
    evaluator = Evaluator(every=6, run=look)
    train_delta(base, delta, latent_set(), config, tmp_path / "a", evaluators=[evaluator])
    run(tmp_path / "b")
    a, b = ((tmp_path / name / "delta.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert [step for step, _ in seen] == [6, 12]
    saved = Delta.load(tmp_path / "a" / "delta.safetensors")
    assert all(torch.equal(p, q) for p, q in zip(seen[-1][1], saved.parameters(), strict=True))
    assert '{"step": 12, "metric": 12.0}' in (tmp_path / "a" / "log.jsonl").read_text()


def test_the_learning_rate_warms_up_and_falls_to_almost_nothing():
    config = TrainingConfig(steps=100, lr=2.0, warmup_steps=10, lr_schedule="cosine")
    assert learning_rate(config, 1) == pytest.approx(0.2)
    assert learning_rate(config, 10) == pytest.approx(2.0)
    assert learning_rate(config, 11) == pytest.approx(2.0)
    assert learning_rate(config, 56) == pytest.approx(1.0)
    assert 0 < learning_rate(config, 100) < 1e-3
    constant = TrainingConfig(steps=100, lr=2.0)
    assert {learning_rate(constant, step) for step in range(1, 101)} == {2.0}


def test_trackers_are_checked_before_the_work(tmp_path):
    with pytest.raises(UsageError, match=r'unknown tracker "tensorbored".*empty list'):
        run(tmp_path, trackers=("tensorbored",))
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    absent = sorted(set(LOGGER_TYPE_TO_CLASS) - set(map(str, get_available_trackers())))
    with pytest.raises(UsageError, match=f'tracker "{absent[0]}" is not installed'):
        run(tmp_path, trackers=(absent[0],))
    assert list(tmp_path.iterdir()) == []


def test_compiling_without_a_compiler_is_refused(monkeypatch, tmp_path):
    import torch._inductor.cpp_builder as builder

    def none_found():
        raise RuntimeError("no compiler")

    monkeypatch.setattr(builder, "get_cpp_compiler", none_found)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
        check_compiler()
    with pytest.raises(UsageError, match="fp16 needs an accelerator"):
        run(tmp_path, precision="fp16")


def test_copies_of_a_picture_are_never_trained_on_and_held_out(tmp_path, monkeypatch):
    held = []

    def watched(latents, indices, task, config):
        held.extend(indices.tolist())
        return Validation(latents, indices, task, config)

    monkeypatch.setattr(loop, "Validation", watched)
    copies = "aabbccddeeffgghhiijj"  # images 2 i and 2 i + 1, which are of two classes
    latents = dataclasses.replace(latent_set(), contents=tuple(copies))
    for seed in range(3):
        run(tmp_path / str(seed), latents=latents, seed=seed, steps=1)
        assert held
        assert {number ^ 1 for number in held} == set(held)
        held.clear()
