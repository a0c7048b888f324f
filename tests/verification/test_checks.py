"""What each check records or judges, and what the whole says."""

import hashlib
from dataclasses import replace

import pytest
import torch

from smidgen.errors import UsageError
from smidgen.models.dit import DiT, preset
from smidgen.models.pretrained import load_base
from smidgen.verification import training
from smidgen.verification.check import Check, verdict_of
from smidgen.verification.config import VerifyConfig
from smidgen.verification.files import check_files
from smidgen.verification.published import (
    DIT_256,
    DIT_512,
    GLYPHS,
    check_published,
    expected_of,
    judged,
    published_of,
)
from smidgen.verification.report import page_of
from smidgen.verification.run import made
from smidgen.verification.training import check_training, digest_of
from tests.tiny.bases import base_of, tiny_base
from tests.tiny.networks import network
from tests.tiny.pipelines import TINY_PIPELINES


def test_files_are_recorded_by_their_hashes_and_not_judged(tmp_path):
    folder = TINY_PIPELINES["sd"].save(tmp_path / "pipeline")
    found = check_files(load_base(folder))
    assert found.status == "not possible"
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    recorded = found.facts["files"]["pipeline/unet/diffusion_pytorch_model.safetensors"]
    assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert recorded["bytes"] == path.stat().st_size
    assert "pipeline/vae/config.json" in found.facts["files"]
    assert str(tmp_path) not in str(found.facts)
    assert check_files(tiny_base()).found == "the base comes from no file"


@pytest.mark.parametrize("kind", ["dit", "sd"])
def test_a_training_gives_the_same_bits_twice_and_leaves_the_base_alone(kind, tmp_path):
    tiny = TINY_PIPELINES["sd"]
    base = tiny_base() if kind == "dit" else load_base(tiny.save(tmp_path / "pipeline"))
    found = check_training(base)
    assert found.status == "pass"
    assert found.facts["largest_difference"] == 0
    assert found.facts["trained"] > 0


def test_a_training_that_differs_or_touches_the_base_fails(monkeypatch):
    rehearse = training.rehearse

    def touching(base, *given, **named):
        result = rehearse(base, *given, **named)
        with torch.no_grad():
            next(base.denoiser.parameters()).add_(1e-3)
        return result

    monkeypatch.setattr(training, "rehearse", touching)
    found = check_training(tiny_base())
    assert found.status == "fail"
    assert not found.facts["base_untouched"]
    assert not found.facts["same_bits"]


def test_the_digest_is_of_every_bit_in_any_number_format():
    base = tiny_base()
    before = digest_of(base.denoiser)
    base.denoiser.bfloat16()
    assert digest_of(base.denoiser) != before
    half = digest_of(base.denoiser)
    with torch.no_grad():
        base.denoiser.get_parameter("final_layer.linear.bias")[0] += 1
    assert digest_of(base.denoiser) != half


def test_the_distance_of_more_images_has_less_of_the_bias():
    endless = {"mean": 2.0, "std": 0.1}
    assert expected_of(3.0, endless, 100, 100) == (3.0, pytest.approx(0.1 * 2**0.5))
    expected, error = expected_of(3.0, endless, 100, 500)
    assert expected == pytest.approx(2.2)
    assert error == pytest.approx(0.1 * 1.2**0.5)


@pytest.mark.parametrize(
    ("distance", "status"),
    [(2.24, "pass"), (2.35, "pass"), (2.13, "pass"), (2.5, "fail"), (2.0, "fail")],
)
def test_a_distance_passes_within_three_standard_errors_of_what_was_published(distance, status):
    endless = {"mean": distance, "std": 0.03 / 2**0.5}
    protocol = {"num_images": 50_000, "feature_dimensions": 2048}
    found = judged(DIT_256, distance, endless, protocol, {})
    assert found.status == status
    assert found.facts["allowed"] == pytest.approx(0.095)
    assert "2.27 or 2.21" in found.found


def test_too_few_images_are_not_judged_by():
    protocol = {"num_images": 4000, "feature_dimensions": 2048}
    found = judged(DIT_256, 9.0, {"mean": 2.2, "std": 0.1}, protocol, {})
    assert found.status == "not possible"
    assert "8,192 at least" in found.found


def meta_base(**config):
    with torch.device("meta"):
        denoiser = DiT(replace(preset("DiT-XL/2"), **config))
    names = [str(number) for number in range(denoiser.config.num_classes)]
    return base_of(denoiser, names, name="DiT-XL-2-256x256.pt")


def test_what_was_published_is_found_by_the_architecture():
    assert published_of(meta_base()) is DIT_256
    assert published_of(meta_base(image_size=64)) is DIT_512
    assert published_of(meta_base(frequency_shift=1.0)) is DIT_256
    assert published_of(meta_base(num_classes=101)) is None
    assert published_of(tiny_base()) is None
    assert published_of(load_base("glyphs")) is GLYPHS


def test_without_its_reference_a_published_number_is_not_possible_and_says_which():
    found = check_published(meta_base(), DIT_256, VerifyConfig())
    assert found.status == "not possible"
    assert "VIRTUAL_imagenet256_labeled.npz" in found.found


def test_the_verdict_is_that_of_what_can_be_judged():
    def checks(*statuses):
        names = ("files", "forward", "training")
        return [
            Check(name=name, status=status, found="")
            for name, status in zip(names, statuses, strict=True)
        ]

    assert verdict_of(checks("not possible", "pass", "pass")) == "pass"
    assert verdict_of(checks("not possible", "pass", "not possible")) == "incomplete"
    assert verdict_of(checks("not possible", "fail", "not possible")) == "fail"


def test_the_page_has_every_check_with_machine_and_date():
    facts = {"largest_difference": 1e-6, "files": {"a/b.pt": {"sha256": "ab"}}, "list": [1, 2]}
    document = {
        "base": "x",
        "network": "DiT",
        "parameters": 1000,
        "date": "2026-01-01",
        "verdict": "incomplete",
        "checks": [
            {"name": "forward", "status": "pass", "found": "equal | near", "facts": facts},
            {"name": "published", "status": "not possible", "found": "no number", "facts": {}},
        ],
        "machine": {"processor": "p", "cores": 2, "accelerators": [], "versions": {"torch": "3"}},
    }
    page = page_of(document)
    for part in ("# x: nothing failed", "**not possible**", "equal \\| near", "torch 3", "sha256"):
        assert part in page
    assert "2026-01-01" in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"checks": "forwards"}, 'unknown check "forwards"; did you mean "forward"'),
        ({"checks": ""}, "checks is empty"),
        ({"num_images": 0}, "num_images is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        VerifyConfig(**settings)


def test_a_reference_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        VerifyConfig(reference=tmp_path / "none.npz")


def test_checks_are_made_in_one_order():
    assert VerifyConfig(checks="training,files").chosen == ("files", "training")
    assert VerifyConfig().chosen == ("files", "forward", "training", "published")


def test_of_a_network_that_no_host_calls_no_check_is_possible_and_each_says_so():
    base = base_of(network("auraflow"))
    config = VerifyConfig()
    for name in ("forward", "training", "published"):
        found = made(name, base, config, None)
        assert found.status == "not possible"
        assert found.found
        assert "\n" not in found.found
