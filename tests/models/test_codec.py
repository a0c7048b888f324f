"""The codec against diffusers' autoencoder itself, and what it refuses."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from smidgen.errors import SmidgenError
from smidgen.models.codec import AutoencoderCodec, Codec, save_codec
from smidgen.models.sources import load_codec

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def codec(vae_folder):
    return load_codec(vae_folder)


@pytest.fixture(scope="module")
def theirs(vae_folder):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_pretrained(vae_folder).eval()


def images(batch: int = 5) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(6)) * 2 - 1


def test_encoding_gives_the_scaled_posterior(codec, theirs):
    mean, std = codec.encode(images())
    with torch.no_grad():
        posterior = theirs.encode(images()).latent_dist
    assert torch.equal(mean, posterior.mean * 0.5)
    assert torch.equal(std, posterior.std * 0.5)
    assert mean.shape == (5, 4, 4, 4)


def test_decoding_undoes_the_scale_and_clamps(codec, theirs):
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = theirs.decode(latents / 0.5).sample
    # another batch size rounds differently
    torch.testing.assert_close(codec.decode(latents), expected.clamp(-1, 1), rtol=0, atol=1e-5)
    assert codec.decode(latents * 100).abs().max() <= 1


def test_a_decoded_image_does_not_depend_on_its_batch(codec):
    latents = torch.randn(35, 4, 4, 4, generator=torch.Generator().manual_seed(8))
    whole = codec.decode(latents)
    for start, stop in [(0, 1), (3, 8), (30, 35), (1, 34)]:
        assert torch.equal(codec.decode(latents[start:stop]), whole[start:stop])


def test_a_shift_factor_is_taken_off_before_the_scale(vae_folder, tmp_path, codec):
    shutil.copytree(vae_folder, tmp_path / "vae")
    change_config(tmp_path / "vae", shift_factor=0.25)
    shifted = load_codec(tmp_path / "vae")
    plain, plain_std = codec.encode(images())
    mean, std = shifted.encode(images())
    torch.testing.assert_close(mean, plain - 0.25 * 0.5, rtol=0, atol=1e-6)
    assert torch.equal(std, plain_std)
    torch.testing.assert_close(shifted.decode(mean), codec.decode(plain), rtol=0, atol=1e-5)


def test_the_fingerprint_follows_weights_and_scale_only(vae_folder, tmp_path, codec):
    shutil.copytree(vae_folder, tmp_path / "vae")
    assert load_codec(tmp_path / "vae").fingerprint == codec.fingerprint
    change_config(tmp_path / "vae", _diffusers_version="0.0", _name_or_path="elsewhere")
    assert load_codec(tmp_path / "vae").fingerprint == codec.fingerprint
    change_config(tmp_path / "vae", scaling_factor=0.6)
    assert load_codec(tmp_path / "vae").fingerprint != codec.fingerprint
    shutil.copytree(vae_folder, tmp_path / "changed")
    data = bytearray((vae_folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed" / WEIGHTS).write_bytes(data)
    assert load_codec(tmp_path / "changed").fingerprint != codec.fingerprint


def test_it_is_a_frozen_codec_and_loads_without_a_word(vae_folder, capfd):
    codec = load_codec(vae_folder)
    assert isinstance(codec, Codec)
    assert (codec.factor, codec.latent_channels) == (2, 4)
    codec.encode(images(1))
    assert not any(p.requires_grad for p in codec._network.parameters())
    assert capfd.readouterr() == ("", "")


def test_a_saved_codec_is_the_same(codec, tmp_path):
    save_codec(codec, tmp_path / "vae")
    assert load_codec(tmp_path).fingerprint == codec.fingerprint  # a folder that holds vae/


def test_half_precision_files_compute_in_single_precision(vae_folder, theirs, tmp_path, codec):
    shutil.copytree(vae_folder, tmp_path / "vae")
    from safetensors.torch import load_file, save_file

    state = {name: t.half() for name, t in load_file(vae_folder / WEIGHTS).items()}
    save_file(state, tmp_path / "vae" / WEIGHTS, metadata={"format": "pt"})
    mean, _ = load_codec(tmp_path / "vae").encode(images())
    assert mean.dtype == torch.float32
    # weights rounded to 11 bits through a dozen layers
    torch.testing.assert_close(mean, codec.encode(images())[0], rtol=0.02, atol=0.01)


def test_images_and_latents_that_do_not_fit_are_refused(codec):
    with pytest.raises(SmidgenError, match="multiples of 2"):
        codec.encode(torch.zeros(1, 3, 8, 7))
    with pytest.raises(SmidgenError, match="3 channels for a codec with 4"):
        codec.decode(torch.zeros(1, 3, 4, 4))


def change_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_damaged_folders_are_refused_before_anything_is_encoded(vae_folder, tmp_path):
    def damaged(name: str):
        shutil.copytree(vae_folder, tmp_path / name)
        return tmp_path / name

    os.truncate(damaged("cut") / WEIGHTS, 5000)
    (damaged("bin") / WEIGHTS).rename(tmp_path / "bin" / "diffusion_pytorch_model.bin")
    (damaged("bare") / WEIGHTS).unlink()
    change_config(damaged("kind"), _class_name="AutoencoderTiny")
    change_config(damaged("grey"), in_channels=1)
    expected = {
        "cut": "get the file again",
        "bin": "pickle",
        "bare": "holds no diffusion_pytorch_model.safetensors",
        "kind": "AutoencoderTiny",
        "grey": "RGB",
    }
    for name, message in expected.items():
        with pytest.raises(SmidgenError, match=message):
            load_codec(tmp_path / name)


def test_weights_that_do_not_fit_the_configuration_are_refused_at_first_use(vae_folder, tmp_path):
    for name, change in [
        ("deeper", {"layers_per_block": 2}),
        ("wider", {"block_out_channels": [8, 32]}),
    ]:
        shutil.copytree(vae_folder, tmp_path / name)
        change_config(tmp_path / name, **change)
        with pytest.raises(SmidgenError, match=str(tmp_path / name)):
            load_codec(tmp_path / name).encode(images(1))


def test_weights_that_are_not_finite_are_refused_by_name_at_first_use(vae_folder, tmp_path):
    shutil.copytree(vae_folder, tmp_path / "vae")
    tensors = load_file(vae_folder / WEIGHTS)
    tensors["decoder.conv_in.weight"] = torch.full_like(
        tensors["decoder.conv_in.weight"], float("nan")
    )
    save_file(tensors, tmp_path / "vae" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(SmidgenError, match=r"vae: not finite .*: decoder\.conv_in\.weight; the"):
        load_codec(tmp_path / "vae").encode(images(1))


def test_only_codecs_with_files_can_be_written(tmp_path):
    class Other:
        factor, latent_channels, fingerprint = 1, 3, "none"

        def encode(self, images):
            return images, images

        def decode(self, latents):
            return latents

    with pytest.raises(SmidgenError, match="no files"):
        save_codec(Other(), tmp_path)


def test_the_autoencoder_is_loaded_once_and_only_when_needed(vae_folder):
    calls = []

    def load(folder):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        calls.append(folder)
        return AutoencoderKL.from_pretrained(folder)

    codec = AutoencoderCodec(vae_folder, load)
    assert codec.fingerprint
    assert calls == []
    codec.encode(images(1))
    codec.decode(torch.zeros(1, 4, 4, 4))
    assert calls == [vae_folder]
