"""The latent cache: what is encoded when, what makes an entry, and what survives damage."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from smidgen.data import cache as cache_module
from smidgen.data import encoded_folder
from smidgen.data.encoded_folder import encode_folder
from smidgen.data.folder import scan
from smidgen.data.latents import LatentSet, MappedRows
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.places import default_cache_dir
from smidgen.sizes import ImageSize
from tests.tiny.codecs import BoxCodec
from tests.tiny.images import noise, snapshot, write_folder, write_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def build(images: Path, codec: BoxCodec | None = None, **options: object) -> LatentSet:
    options = {"sizes": [ImageSize.of(16)], "cache_dir": images.parent / "cache", **options}
    return encode_folder(scan(images, decode=False), codec or BoxCodec(factor=4), **options)


def shards(images: Path) -> list[Path]:
    return sorted((images.parent / "cache").rglob("*.safetensors"))


def test_latents_are_those_of_the_images_with_labels_and_names(images: Path) -> None:
    codec = BoxCodec(factor=4, spread=0.25)
    latents = build(images, codec)
    assert latents.names == ("a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png")
    assert latents.class_numbers.tolist() == [0, 0, 0, 1, 1, 1]
    assert latents.mean.shape == (6, 1, 4, 4, 4)
    assert latents.mean.dtype == torch.float32
    for index, seed in enumerate([0, 1, 2, 100, 101, 102]):
        # float32 pixels in [-1, 1], averaged: within a few roundings.
        torch.testing.assert_close(
            latents.mean[index, 0], codec.expected(noise(seed)), atol=1e-6, rtol=1e-6
        )
    assert torch.equal(latents.std, torch.full_like(latents.std, 0.25))


def test_a_second_build_encodes_nothing_and_gives_the_same(images: Path) -> None:
    first = build(images)
    codec = BoxCodec(factor=4)
    second = build(images, codec)
    assert codec.calls == []
    assert (first.num_encoded, second.num_encoded) == (6, 0)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.std, second.std)
    assert first.class_numbers.tolist() == second.class_numbers.tolist()
    assert first.names == second.names


def test_entries_belong_to_content_wherever_it_lies(images: Path) -> None:
    first = build(images)
    moved = images.parent / "moved"
    (moved / "z").mkdir(parents=True)
    shutil.copy(images / "b" / "1.png", moved / "z" / "other name.png")
    again = build(moved)
    assert again.num_encoded == 0
    assert torch.equal(again.mean[0], first.mean[4])
    assert again.class_numbers.tolist() == [0]


def test_only_a_changed_file_is_encoded_again_even_with_its_old_time_and_size(
    images: Path,
) -> None:
    Image.fromarray(noise(0)).save(images / "a" / "0.bmp")
    (images / "a" / "0.png").unlink()
    build(images)
    path = images / "a" / "0.bmp"
    before = path.stat()
    Image.fromarray(noise(55)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    codec = BoxCodec(factor=4)
    latents = build(images, codec)
    assert latents.num_encoded == 1
    torch.testing.assert_close(latents.mean[0, 0], codec.expected(noise(55)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"codec": BoxCodec("another", factor=4, scale=2.0)},
        {"sizes": [ImageSize.of(8)]},
        {"mode": "resize"},
        {"flip": True},
    ],
)
def test_another_transform_or_codec_has_its_own_entries(
    images: Path, change: dict[str, object]
) -> None:
    build(images)
    changed = build(images, **change)
    assert changed.num_encoded == 6
    assert build(images).num_encoded == 0
    assert build(images, **change).num_encoded == 0


def test_crop_and_resize_reach_the_codec_as_named(tmp_path: Path) -> None:
    stored = np.zeros((16, 48, 3), np.uint8)
    stored[:, 16:32] = 255
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "a.png")
    crop = build(tmp_path / "images")
    assert torch.equal(crop.mean, torch.ones_like(crop.mean))
    resize = build(tmp_path / "images", mode="resize", sizes=[ImageSize.of(24)])
    # Six latent columns: two of the left third, two white ones, two of the right third.
    columns = resize.mean[0, 0, 0].mean(0)
    assert (columns[[0, 5]] == -1).all()
    assert (columns[2:4] > 0.9).all()


def test_flip_caches_the_mirror_image_as_second_view(images: Path) -> None:
    codec = BoxCodec(factor=4, spread=0.5)
    latents = build(images, codec, flip=True)
    assert latents.mean.shape == (6, 2, 4, 4, 4)
    torch.testing.assert_close(
        latents.mean[3, 1], codec.expected(noise(100)[:, ::-1]), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(latents.mean[3, 0], codec.expected(noise(100)), atol=1e-6, rtol=1e-6)
    drawn = latents.draw([3] * 50, torch.Generator().manual_seed(0))[0].mean(0)
    # The mean of both views, within what fifty draws of deviation 0.5 and a coin allow.
    torch.testing.assert_close(drawn, latents.mean[3].mean(0), atol=1.0, rtol=0)


def test_equal_files_are_encoded_once(images: Path) -> None:
    for name in ("copy 1.png", "copy 2.png"):
        shutil.copy(images / "a" / "0.png", images / "b" / name)
    latents = build(images, BoxCodec(factor=4))
    assert len(latents) == 8
    assert latents.num_encoded == 6
    assert latents.report().endswith("\n6 encoded, 0 from the cache")
    assert "2 are duplicates of others" in latents.report()
    assert build(images).report().endswith("\n0 encoded, 6 from the cache")
    copies = [latents.names.index(f"b/copy {number}.png") for number in (1, 2)]
    assert latents.class_numbers[copies].tolist() == [1, 1]
    for copy in copies:
        assert torch.equal(latents.mean[copy], latents.mean[0])


def test_the_codec_sees_batches_of_one_size(images: Path) -> None:
    codec = BoxCodec(factor=4)
    build(images, codec, batch_size=4)
    assert codec.calls == [4, 4]


def test_large_images_make_small_batches(images: Path) -> None:
    codec = BoxCodec(factor=4)
    latents = build(images, codec, sizes=[ImageSize.of(256)])
    assert codec.calls == [4, 4]
    assert latents.num_enlarged == 6
    assert "6 smaller than the training size, enlarged" in latents.report()
    assert "6 encoded, 0 from the cache" in latents.report()


def test_an_interrupted_build_keeps_what_it_wrote(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_IMAGES", 2)
    whole = build(images, batch_size=2, cache_dir=images.parent / "uninterrupted")

    class Dying(BoxCodec):
        def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().encode(images)

    with pytest.raises(KeyboardInterrupt):
        build(images, Dying(factor=4), batch_size=2)
    resumed = build(images, batch_size=2)
    assert resumed.num_encoded == 2
    assert torch.equal(resumed.mean, whole.mean)


def test_bad_files_are_the_same_as_a_scan_finds_cached_or_not(images: Path) -> None:
    (images / "a" / "cut.png").write_bytes((images / "a" / "0.png").read_bytes()[:100])
    (images / "a" / "same.jpg").write_bytes((images / "a" / "1.png").read_bytes())
    Image.fromarray(noise(7)).save(images / "a" / "thumbnail.tif")
    shutil.copy(images / "a" / "thumbnail.tif", images / "a" / "thumbnail.dng")
    write_image(images / "b" / "tiny.png", width=30, height=4)
    expected = scan(images)
    assert [bad.kind for bad in expected.bad] == ["truncated", "unsupported", "tiny"]
    assert len(expected.files) == 6 + 2
    for _ in range(2):
        found = build(images, bad_limit=0.5).folder
        assert found is not None
        assert found.bad == expected.bad
        assert found.files == expected.files


def test_a_cached_image_is_judged_by_the_size_that_is_asked_now(images: Path) -> None:
    write_image(images / "b" / "wide.png", width=40, height=12)
    build(images)
    latents = encode_folder(
        scan(images, decode=False, min_size=16),
        BoxCodec(factor=4),
        sizes=[ImageSize.of(16)],
        cache_dir=images.parent / "cache",
        bad_limit=0.5,
    )
    assert latents.folder is not None
    assert [bad.reason for bad in latents.folder.bad] == [
        "tiny: 40 x 12 pixels, at least 16 a side are needed"
    ]
    assert latents.num_encoded == 0


def test_too_many_bad_files_stop_the_codec_and_are_all_listed(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", ("a",), per_class=8)
    for number in range(3):
        (images / "a" / f" bad {number}.png").write_bytes(b"x")
    codec = BoxCodec(factor=4)
    with pytest.raises(SmidgenError, match=r"(?s)3 of 11 .*27\.3%.*a/ bad 2\.png: unreadable"):
        build(images, codec, batch_size=2, bad_limit=0.1)
    assert codec.calls == []
    assert build(images, bad_limit=3 / 11).num_encoded == 8


def test_a_class_without_usable_images_is_refused(images: Path) -> None:
    for path in (images / "b").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(SmidgenError, match='class folder "b"'):
        build(images, bad_limit=1.0)


def test_files_that_vanish_or_change_after_the_scan_are_judged_as_they_are(images: Path) -> None:
    folder = scan(images)
    (images / "a" / "0.png").unlink()
    (images / "a" / "1.png").write_bytes(b"now text")
    write_image(images / "a" / "2.png", seed=77)
    codec = BoxCodec(factor=4)
    latents = encode_folder(
        folder, codec, sizes=[ImageSize.of(16)], cache_dir=images.parent / "cache", bad_limit=0.5
    )
    assert latents.names == ("a/2.png", "b/0.png", "b/1.png", "b/2.png")
    torch.testing.assert_close(latents.mean[0, 0], codec.expected(noise(77)), atol=1e-6, rtol=1e-6)
    assert latents.folder is not None
    assert [(bad.path.name, bad.kind) for bad in latents.folder.bad] == [
        ("0.png", "unreadable"),
        ("1.png", "unreadable"),
    ]


def rewritten(path: Path, header: object, **tensors: torch.Tensor) -> bytes:
    """The shard with another header of ours (text as it is, else as JSON) or other tensors."""
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in ("mean", "std")} | tensors
    text = header if isinstance(header, str) else json.dumps(header)
    stored = {name: tensor.clone().contiguous() for name, tensor in stored.items()}
    return save(stored, metadata={"smidgen": text})


def damages(path: Path) -> dict[str, bytes]:
    """Contents that a shard must not have."""
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-5] ^= 1
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["smidgen"])
        mean = file.get_tensor("mean")
    spec, rows = header["spec"], header["rows"]
    return {
        "truncated": data[:-7],
        "flipped bit": bytes(flipped),
        "text": b"{}",
        "empty": b"",
        "header only": b"\x02\0\0\0\0\0\0\0{}",
        "huge header": b"\xff" * 8 + data[8:],
        "no header of ours": save({"mean": mean, "std": mean.clone()}),
        "nested": rewritten(path, "[" * 100_000 + "]" * 100_000),
        "nested spec": rewritten(path, '{"rows": [], "spec": ' + '{"a":' * 100_000),
        "a list": rewritten(path, [spec, rows]),
        "rows a number": rewritten(path, {"spec": spec, "rows": 5}),
        "rows of numbers": rewritten(path, {"spec": spec, "rows": [5] * len(rows)}),
        "a width that is text": rewritten(
            path, {"spec": spec, "rows": [[c, f, "9", h] for c, f, _, h in rows]}
        ),
        "a content that is a list": rewritten(
            path, {"spec": spec, "rows": [[[c], f, w, h] for c, f, w, h in rows]}
        ),
        "too few rows": rewritten(path, {"spec": spec, "rows": rows[1:]}),
        "spec a list": rewritten(path, {"spec": [1], "rows": rows}),
        "mean a vector": rewritten(path, header, mean=mean[:, 0, 0, 0, 0]),
        "mean of no rows": rewritten(path, {"spec": spec, "rows": []}, mean=mean[:0], std=mean[:0]),
        "another number of views": rewritten(
            path, header, mean=mean.repeat(1, 2, 1, 1, 1), std=mean.repeat(1, 2, 1, 1, 1)
        ),
        "half the latent": rewritten(path, header, mean=mean[..., :2]),
        "whole numbers": rewritten(path, header, mean=mean.int()),
        "bf16": rewritten(path, header, mean=mean.bfloat16(), std=mean.bfloat16()),
    }


def test_a_damaged_cache_file_is_rebuilt_with_a_log_line(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = build(images)
    (path,) = shards(images)
    for what, data in damages(path).items():
        for name in (path.name, f"{hashlib.sha256(data).hexdigest()}.safetensors"):
            if what == "flipped bit" and name != path.name:
                continue  # another bit is another latent, and its name fits it
            path.unlink(missing_ok=True)
            path.with_name(name).write_bytes(data)
            with caplog.at_level(logging.WARNING):
                again = build(images)
            assert again.num_encoded == 6, what
            assert torch.equal(again.mean, first.mean)
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "damaged" in caplog.text
            assert len(caplog.messages[0]) < 600
            caplog.clear()
            assert build(images).num_encoded == 0
            assert caplog.records == []
            assert shards(images) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_pipe_or_a_folder_in_the_cache_is_passed_over_with_a_log_line(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(images)
    (path,) = shards(images)
    os.mkfifo(path.with_name("0.safetensors"))
    path.with_name("1.safetensors").mkdir()
    with caplog.at_level(logging.WARNING):
        assert build(images).num_encoded == 0
    assert [message.partition(":")[0][:26] for message in caplog.messages] == [
        "cannot read the cache file"
    ] * 2


def test_a_shard_of_another_codec_put_in_the_wrong_folder_is_not_used(images: Path) -> None:
    build(images, BoxCodec("other", factor=4, scale=3.0))
    (foreign,) = shards(images)
    expected = build(images)
    (own,) = (path for path in shards(images) if path != foreign)
    shutil.copy(foreign, own.parent / foreign.name)
    own.unlink()
    again = build(images)
    assert again.num_encoded == 6
    assert torch.equal(again.mean, expected.mean)


def test_the_users_folder_is_not_touched(images: Path) -> None:
    (images / "a" / "bad.png").write_bytes(b"x")
    before = snapshot(images)
    build(images, bad_limit=0.5, flip=True)
    build(images, bad_limit=0.5, flip=True)
    assert snapshot(images) == before


def test_a_cache_in_the_users_folder_is_refused(images: Path) -> None:
    for place in (images, images / "a" / "cache"):
        with pytest.raises(UsageError, match="never written to"):
            build(images, cache_dir=place)


def test_nothing_but_whole_shards_is_left_behind(images: Path) -> None:
    build(images)
    left = images.parent / "cache" / "latents"
    stale = shards(images)[0].parent / ".old.partial"
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    write_image(images / "a" / "new.png", seed=9)
    build(images)
    assert {path.suffix for path in left.rglob("*") if path.is_file()} == {".safetensors"}


def test_a_shard_gets_its_name_only_when_it_is_whole(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[Path] = []
    rename = Path.replace

    def watched(source: Path, target: Path) -> Path:
        assert hashlib.sha256(source.read_bytes()).hexdigest() == target.stem
        assert not target.exists()
        renamed.append(target)
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", watched)
    build(images)
    assert renamed == shards(images)


def test_large_sets_stay_mapped_and_draw_the_same(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_IMAGES", 4)
    in_memory = build(images, batch_size=2)
    monkeypatch.setattr(encoded_folder, "MEMORY_BYTES", 0)
    mapped = build(images, batch_size=2)
    assert isinstance(mapped.mean, MappedRows)
    assert len(shards(images)) == 2
    one, other = (
        latents.draw([5, 0, 3, 3], torch.Generator().manual_seed(2))[0]
        for latents in (in_memory, mapped)
    )
    assert torch.equal(one, other)


def test_non_finite_latents_are_refused_by_name_and_not_cached(images: Path) -> None:
    class Overflowing(BoxCodec):
        def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, std = super().encode(images)
            mean[1] = float("inf")
            return mean, std

    with pytest.raises(SmidgenError, match=r"non-finite latents for 1 of 6 .*a/1\.png"):
        build(images, Overflowing(factor=4))
    assert shards(images) == []


def test_impossible_requests_are_refused(images: Path) -> None:
    for options in (
        {"sizes": [ImageSize.of(18)]},
        {"sizes": [ImageSize(0, 0)]},
        {"mode": "stretch"},
    ):
        with pytest.raises(UsageError):
            build(images, **options)


def test_a_cache_folder_that_cannot_be_is_one_clear_line(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        codec = BoxCodec(factor=4)
        with pytest.raises(SmidgenError, match=r"cannot (read|write) the latent cache") as caught:
            build(images, codec, cache_dir=place)
        assert "\n" not in str(caught.value)
        assert "SMIDGEN_CACHE" in str(caught.value)
        assert codec.calls == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_cache_serves_what_it_has(images: Path) -> None:
    build(images)
    folders = [path for path in (images.parent / "cache").rglob("*") if path.is_dir()]
    try:
        for path in folders:
            path.chmod(0o555)
        assert build(images).num_encoded == 0
        write_image(images / "a" / "new.png", seed=9)
        with pytest.raises(SmidgenError, match=r"cannot write .*SMIDGEN_CACHE"):
            build(images)
    finally:
        for path in folders:
            path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_is_one_clear_line_and_leaves_nothing_behind(images: Path) -> None:
    import resource

    folder = scan(images)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache_dir = images.parent / "cache"
    # Python ignores the signal, so that a write beyond the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SmidgenError, match=r"cannot write .*SMIDGEN_CACHE") as caught:
            encode_folder(folder, BoxCodec(factor=4), sizes=[ImageSize.of(16)], cache_dir=cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert [path for path in cache_dir.rglob("*") if path.is_file()] == []


BUILD = """
import sys
from pathlib import Path
from smidgen.data import cache, encoded_folder
from smidgen.data.folder import scan
from tests.tiny.codecs import BoxCodec
from smidgen.sizes import ImageSize
cache.SHARD_IMAGES = 3
images, place = map(Path, sys.argv[1:])
folder = scan(images, decode=False)
print("ready", flush=True)
sys.stdin.readline()
latents = encoded_folder.encode_folder(
    folder, BoxCodec(factor=4), sizes=[ImageSize.of(16)], cache_dir=place, batch_size=3
)
print(latents.mean.double().sum().item())
"""


@pytest.mark.slow
def test_two_processes_build_one_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_IMAGES", 3)
    images = write_folder(tmp_path / "images", per_class=60)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, str(images), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        mine = build(images, batch_size=3)
        out, err = other.communicate()
    assert err == ""
    assert float(out) == mine.mean.double().sum().item()
    again = build(images, batch_size=3)
    assert again.num_encoded == 0
    assert torch.equal(again.mean, mine.mean)


def test_two_threads_build_one_cache_and_encode_once(images: Path) -> None:
    codec = BoxCodec(factor=4)
    results: list[LatentSet] = []
    threads = [
        threading.Thread(target=lambda: results.append(build(images, codec))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(latents.num_encoded for latents in results) == [0, 6]
    assert torch.equal(results[0].mean, results[1].mean)


def test_the_cache_folder_follows_the_environment_then_the_platform(tmp_path: Path) -> None:
    given = {"SMIDGEN_CACHE": str(tmp_path / "mine"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    assert default_cache_dir(given) == tmp_path / "mine"
    del given["SMIDGEN_CACHE"]
    assert default_cache_dir(given) == tmp_path / "xdg" / "smidgen"
    fallback = default_cache_dir({})
    assert default_cache_dir({"XDG_CACHE_HOME": "relative", "SMIDGEN_CACHE": ""}) == fallback
    assert fallback.is_relative_to(Path.home())
    assert "smidgen" in fallback.parts


def test_fp16_keeps_latents_in_half_of_the_bytes_within_its_bound(images: Path) -> None:
    full, half = build(images), build(images, precision="fp16")
    assert (half.num_encoded, build(images, precision="fp16").num_encoded) == (6, 0)
    assert build(images).num_encoded == 0  # each lies where it was
    for whole, kept in ((full.mean, half.mean), (full.std, half.std)):
        assert (kept.dtype, kept.nbytes * 2) == (torch.float16, whole.nbytes)
        bound = (whole.abs() / 2048).clamp(min=2.0**-25)
        assert ((kept.float() - whole).abs() <= bound).all()
    drawn, _ = half.draw([0, 1], torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    assert len({path.parent for path in shards(images)}) == 2


def test_latents_that_fp16_cannot_hold_are_refused_by_name(images: Path) -> None:
    class Large(BoxCodec):
        def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, std = super().encode(images)
            mean[1] = 65520.0  # the least number that rounds to infinity
            return mean, std

    with pytest.raises(SmidgenError, match=r"1 of 6 images \(a/1\.png\) .* 65,504.*fp32"):
        build(images, Large(factor=4), precision="fp16")
    assert shards(images) == []
    assert build(images, Large(factor=4)).num_encoded == 6
