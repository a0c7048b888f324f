"""Images that keep their shape: to which sizes they are brought, and their latents."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from smidgen.data.encoded_folder import encode_folder
from smidgen.data.findings import findings_of
from smidgen.data.folder import look_at_all, scan
from smidgen.data.latents import BucketRows
from smidgen.sizes import MOST_ASPECT, ImageSize, Sides, buckets_of, nearest
from tests.tiny.codecs import BoxCodec
from tests.tiny.images import noise, write_image

SIDES = Sides(multiple=2, step=4)
SIZES = buckets_of(ImageSize.of(16), SIDES)
SHAPES = {"square": (32, 32), "wide": (40, 24), "tall": (24, 40), "banner": (200, 20)}


@pytest.fixture
def images(tmp_path):
    for number, (name, (width, height)) in enumerate(SHAPES.items()):
        write_image(tmp_path / "images" / f"{name}.png", number, width, height)
    return tmp_path / "images"


def encoded(images, sizes=SIZES, codec=None, **options):
    return encode_folder(
        scan(images, decode=False),
        codec or BoxCodec(factor=4),
        sizes=sizes,
        cache_dir=images.parent / "cache",
        **options,
    )


@pytest.mark.parametrize(
    ("size", "step"),
    [(16, 4), (512, 64), (1024, 64), ("768x512", 64), (100, 8), (64, 64), (1024, 16), (512, 2)],
)
def test_buckets_are_of_about_one_area_and_never_above(size, step):
    size = ImageSize.of(size)
    found = buckets_of(size, Sides(multiple=2, step=step))
    assert found[0] == size
    assert len(set(found)) == len(found) <= 50
    for one in found[1:]:
        assert one.width % step == one.height % step == 0
        assert 0.75 * size.area <= one.area <= size.area
        assert max(one) <= MOST_ASPECT * min(one)
        assert ImageSize(one.height, one.width) in found


def test_buckets_of_sdxl_hold_those_that_it_was_trained_on():
    """Podell et al. 2023, arXiv 2307.01952, appendix I, of those the highest of their width."""
    published = ["1024x1024", "896x1152", "832x1216", "768x1344", "704x1472"]
    published += ["640x1600", "576x1792", "512x2048", "1152x896", "1344x768", "2048x512"]
    found = buckets_of(ImageSize.of(1024), Sides(multiple=8, step=64))
    assert {ImageSize.of(size) for size in published} <= set(found)


def test_a_base_with_short_positions_has_no_longer_buckets():
    sizes = buckets_of(ImageSize.of(16), Sides(multiple=4, step=4, most=20))
    assert max(max(size) for size in sizes) == 20


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((500, 500), "16"),
        ((500, 300), "20x12"),
        ((300, 500), "12x20"),
        ((16, 15), "16"),
        ((9000, 10), "32x8"),
    ],
)
def test_a_picture_goes_where_its_shape_is_nearest(shape, size):
    assert nearest(*shape, SIZES) == ImageSize.of(size)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_bucket_is_nearer(seed):
    width, height = np.random.default_rng(seed).integers(8, 400, 2).tolist()
    ratio = math.log(width / height)
    found = nearest(width, height, SIZES)
    distances = {size: abs(math.log(size.width / size.height) - ratio) for size in SIZES}
    assert distances[found] <= min(distances.values()) + 1e-12


def test_each_image_is_encoded_in_its_shape(images):
    latents = encoded(images)
    sizes = dict(zip(latents.names, latents.image_sizes, strict=True))
    assert {name: str(size) for name, size in sizes.items()} == {
        "banner.png": "32x8",
        "square.png": "16",
        "tall.png": "12x20",
        "wide.png": "20x12",
    }
    assert isinstance(latents.mean, BucketRows)
    codec = BoxCodec(factor=4)
    for number, name in enumerate(latents.names):
        size, (width, height) = sizes[name], SHAPES[name.removesuffix(".png")]
        # four times as wide as high at the most: of the banner the 80 pixels in the middle
        box = (60, 0, 140, 20) if name == "banner.png" else (0, 0, width, height)
        seed = list(SHAPES).index(name.removesuffix(".png"))
        picture = Image.fromarray(noise(seed, width, height))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box))
        expected = codec.expected(pixels)
        index = torch.tensor([number])
        assert latents.shape(index) == expected.shape == (4, size.height // 4, size.width // 4)
        torch.testing.assert_close(latents.mean[index, index * 0][0], expected)


def test_what_was_encoded_at_one_size_is_found_there_and_nowhere_else(images):
    one = encoded(images, SIZES[:1])
    assert one.num_encoded == 4
    latents = encoded(images)
    assert latents.num_encoded == 3  # the square is where it was
    assert encoded(images).num_encoded == 0
    square = latents.names.index("square.png")
    index = torch.tensor([square])
    assert torch.equal(latents.mean[index, index * 0], one.mean[index, index * 0])


def test_draws_of_a_bucket_are_those_of_a_set_of_its_own(images):
    for number in range(3):
        write_image(images / f"wide {number}.png", 10 + number, 50, 30)
    latents = encoded(images, flip=True)
    assert latents.num_views == 2
    everything = latents.in_buckets(torch.arange(len(latents)))
    assert sorted(torch.cat(everything).tolist()) == list(range(7))
    (wide,) = [part for part in everything if len(part) > 1]
    names = {f"wide{end}.png" for end in (" 0", " 1", " 2", "")}
    assert {latents.names[i] for i in wide} == names
    for path in images.iterdir():
        if not path.name.startswith("wide"):
            path.unlink()
    alone = encoded(images, flip=True)
    assert isinstance(alone.mean, torch.Tensor)
    seeds = (torch.Generator().manual_seed(1) for _ in range(2))
    one, other = latents.draw(wide, next(seeds))[0], alone.draw(range(4), next(seeds))[0]
    assert torch.equal(one, other)


def test_no_image_is_lost_and_the_findings_say_where_each_is(images):
    (images / "broken.png").write_bytes(b"x")
    latents = encoded(images, bad_limit=0.5)
    listed, looks = look_at_all(scan(images, decode=False))
    assert latents.findings == findings_of(listed, looks, SIZES)
    assert latents.findings.buckets == {"12x20": 1, "16": 1, "20x12": 1, "32x8": 1}
    lines = latents.report()
    assert "4 bucket(s), by the shape of the images: 1 at 12x20, 1 at 16, 1 at 20x12" in lines
    assert "broken.png: unreadable" in lines
    assert encoded(images, SIZES[:1], bad_limit=0.5).findings.buckets is None
