"""Decoding, orientation, colour modes and the two transforms, against expectations written out."""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from smidgen.data.images import (
    Facts,
    UnusableImage,
    decode,
    fit,
    strict_pillow,
)
from smidgen.sizes import ImageSize
from tests.tiny.images import noise


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, name: str = "x.png") -> np.ndarray:
    return np.asarray(decode(data, Path(name), min_size=1)[0])


# What a viewer shows for each EXIF orientation, from the definition of tag 274 in TIFF 6.0:
# where the stored row 0 and column 0 are on the upright picture.
UPRIGHT = {
    1: lambda a: a,  # row 0 top, column 0 left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a[::-1].swapaxes(0, 1),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a[:, ::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = noise(1, width=20, height=12)
    exif = Image.Exif()
    exif[274] = orientation
    shown = pixels_of(encoded(Image.fromarray(stored), exif=exif))
    np.testing.assert_array_equal(shown, UPRIGHT[orientation](stored))


def test_orientation_six_puts_the_stored_left_bottom_corner_at_the_upper_left() -> None:
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[-1, 0] = 255
    exif = Image.Exif()
    exif[274] = 6
    shown = pixels_of(encoded(Image.fromarray(stored), exif=exif))
    assert shown.shape == (16, 8, 3)
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown.sum() == 3 * 255


def test_damaged_exif_does_not_cost_the_image() -> None:
    stored = noise(2)
    data = encoded(Image.fromarray(stored), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with strict_pillow():
        np.testing.assert_array_equal(pixels_of(data), stored)


def test_alpha_is_composited_on_white() -> None:
    stored = np.zeros((8, 8, 4), np.uint8)
    stored[..., 0] = 200
    stored[..., 3] = np.arange(8) * 36
    shown = pixels_of(encoded(Image.fromarray(stored)))
    alpha = stored[..., 3:].astype(float) / 255
    expected = alpha * stored[..., :3] + (1 - alpha) * 255
    np.testing.assert_allclose(shown, expected, atol=1)


def test_transparent_palette_colour_becomes_white() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((3, 2), 0)
    shown = pixels_of(encoded(palette, transparency=0))
    assert shown[2, 3].tolist() == [255, 255, 255]
    assert shown[0, 0].tolist() == [40, 50, 60]


def test_sixteen_bit_grey_is_divided_by_257() -> None:
    stored = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    shown = pixels_of(encoded(Image.fromarray(stored)))
    np.testing.assert_array_equal(shown, np.rint(stored / 257)[..., None].repeat(3, -1))


def test_float_tiff_is_taken_as_zero_to_one_and_refused_beyond() -> None:
    stored = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    shown = pixels_of(encoded(Image.fromarray(stored), "TIFF"), "x.tif")
    np.testing.assert_array_equal(shown[..., 0], np.rint(stored * 255))
    with pytest.raises(UnusableImage, match=r"unsupported: float32 pixels outside 0\.\.1"):
        pixels_of(encoded(Image.fromarray(stored * 300), "TIFF"), "x.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    shown = pixels_of(encoded(Image.new("RGB", (9, 8), "white").convert(mode)))
    np.testing.assert_array_equal(shown, np.full((8, 9, 3), 255))


def test_cmyk_jpeg_becomes_rgb() -> None:
    shown = pixels_of(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), "x.jpg")
    np.testing.assert_allclose(shown, np.broadcast_to([0, 255, 255], (8, 8, 3)), atol=6)


def test_camera_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    first, second = Image.fromarray(noise(1)), Image.fromarray(noise(2))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    image, facts = decode(data, Path("photo.JPG"))
    assert facts == Facts(format="JPEG", width=16, height=16)
    # JPEG loses a little; the other picture is nowhere near.
    assert np.abs(np.asarray(image).astype(float) - noise(1)).mean() < 60
    assert np.abs(np.asarray(image).astype(float) - noise(2)).mean() > 60


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_truncation_of_every_format_is_refused(format: str) -> None:
    data = encoded(Image.fromarray(noise(3)), format)
    # A GIF's last two bytes end the file, not the picture.
    lost = {1, 8, 20, len(data) // 2, len(data) - 4} if format != "GIF" else {3, len(data) // 2}
    with strict_pillow():
        decode(data, Path(f"x.{format.lower()}"))
        for number in lost:
            with pytest.raises(UnusableImage, match=r"truncated|unreadable"):
                decode(data[:-number], Path(f"x.{format.lower()}"))


def test_truncated_files_are_refused_whatever_the_user_told_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(Image.fromarray(noise(3, 64, 64)), "JPEG")[:-500]
    decode(data, Path("x.jpg"))
    with strict_pillow(), pytest.raises(UnusableImage, match="truncated"):
        decode(data, Path("x.jpg"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF"])
def test_several_frames_or_pages_are_refused(format: str) -> None:
    frames = [Image.fromarray(noise(seed)) for seed in range(2)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnusableImage, match="animated: 2 frames"):
        decode(data, Path(f"x.{format.lower()}"))


def test_single_gif_is_used() -> None:
    assert decode(encoded(Image.new("P", (8, 8)), "GIF"), Path("x.gif"))[1].format == "GIF"


def test_decompression_bomb_is_a_reason_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (40, 40)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Pillow warns above its limit and raises above twice the limit.
        for limit in (1000, 100):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with strict_pillow(), pytest.raises(UnusableImage, match=r"too large: .*over"):
                decode(data, Path("x.png"))


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"<html>not found</html>", "x.jpg", "unreadable: not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "x.png", "unreadable: damaged PNG data"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "x.heic", "unsupported: HEIC is not read"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "x.jpg", "unsupported: HEIC is not read"),
        (b"8BPS" + bytes(40), "x.psd", "unsupported: PSD is not read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "x.png", "unsupported: JPEG XL is not read"),
        (encoded(Image.new("RGB", (8, 8)), "TIFF"), "x.CR2", "unsupported: .CR2 is not read"),
        (encoded(Image.new("RGB", (7, 90))), "x.png", "tiny: 7 x 90 pixels, at least 8 a side"),
    ],
)
def test_reasons_say_what_is_wrong(data: bytes, name: str, reason: str) -> None:
    with pytest.raises(UnusableImage) as caught:
        decode(data, Path(name))
    assert str(caught.value).startswith(reason)
    assert caught.value.kind == reason.split(":")[0]


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = np.frombuffer(encoded(Image.fromarray(noise(1)), format), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, min(200, len(data)), 4)] = rng.integers(0, 256, 4)
            with strict_pillow():
                try:
                    decode(data.tobytes(), Path(f"x.{format.lower()}"))
                    outcomes.add("used")
                except UnusableImage as error:
                    outcomes.add(error.kind)
    assert {"used", "unreadable"} <= outcomes


def test_crop_takes_the_centre_square_pixel_by_pixel() -> None:
    wide, tall = noise(4, width=33, height=16), noise(5, width=16, height=25)
    np.testing.assert_array_equal(
        fit(Image.fromarray(wide), ImageSize.of(16), "crop"), wide[:, 8:24].transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(
        fit(Image.fromarray(tall), ImageSize.of(16), "crop"), tall[4:20].transpose(2, 0, 1)
    )


def test_resize_keeps_all_of_the_picture_and_crop_does_not() -> None:
    stored = np.zeros((16, 48, 3), np.uint8)
    stored[:, 16:32] = 255
    image = Image.fromarray(stored)
    assert fit(image, ImageSize.of(16), "crop").min() == 255
    resized = fit(image, ImageSize.of(48), "resize")
    np.testing.assert_array_equal(resized[0] > 127, np.tile(stored[:1, :, 0] > 127, (48, 1)))


def test_shrinking_is_antialiased() -> None:
    # A one-pixel chequerboard has the mean 127.5 everywhere; picking pixels would give 0 or 255.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    for mode in ("crop", "resize"):
        assert (
            np.abs(fit(Image.fromarray(board), ImageSize.of(16), mode).astype(float) - 127.5).max()
            <= 8
        )


def test_enlarging_keeps_a_constant_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (10, 12), (7, 90, 200)).save(path)
    image, facts = decode(path.read_bytes(), path)
    pixels = fit(image, ImageSize.of(24), "crop")
    assert pixels.dtype == np.uint8
    assert (pixels == np.reshape([7, 90, 200], (3, 1, 1))).all()
    assert [facts.enlarged(ImageSize.of(size)) for size in (24, 11, 10, 8)] == [
        True,
        True,
        False,
        False,
    ]


def test_strict_pillow_gives_the_settings_back_when_used_by_two_threads() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    entered = threading.Event()

    def other() -> None:
        entered.set()
        with strict_pillow():
            pass

    thread = threading.Thread(target=other)
    with strict_pillow():
        thread.start()
        entered.wait()
    thread.join()
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
