import pytest

from smidgen.errors import UsageError
from smidgen.files.settings import convert
from smidgen.sizes import ImageSize, Sides


@pytest.mark.parametrize(
    ("given", "size", "plain"),
    [
        (64, (64, 64), 64),
        ("64", (64, 64), 64),
        ("96x64", (96, 64), "96x64"),
        ("64x64", (64, 64), 64),
        (ImageSize(8, 4), (8, 4), "8x4"),
    ],
)
def test_a_size_reads_as_it_is_written(given, size, plain):
    found = ImageSize.of(given)
    assert (found, found.plain, str(found)) == (size, plain, str(plain))
    assert convert(plain, ImageSize | None, "image_size") == found


@pytest.mark.parametrize("wrong", [0, -8, 2**17, True, "64x", "x64", "64x64x3", "1.5", "8x0", ""])
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(UsageError, match=r"image_size is .*; expected"):
        ImageSize.of(wrong)
    with pytest.raises(
        UsageError, match=r"image_size is .*; expected a number of pixels, or WIDTH"
    ):
        convert(wrong, ImageSize | None, "image_size")


@pytest.mark.parametrize(
    ("size", "nearest"),
    [("90x64", "96x64"), ("100x100", "96"), ("3x1000", "16x128"), ("64x129", "64x128")],
)
def test_sides_that_do_not_fit_are_told_with_the_nearest_that_do(size, nearest):
    sides = Sides(multiple=16, step=16, most=128)
    with pytest.raises(
        UsageError, match=rf'{ImageSize.of(size)} does not fit base "b".* give {nearest}$'
    ):
        sides.check(ImageSize.of(size), "b")
    sides.check(ImageSize.of(nearest), "b")
