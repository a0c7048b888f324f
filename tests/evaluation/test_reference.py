"""Statistics of folders and files: right, cached under their content, checked when read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from smidgen.data.folder import scan
from smidgen.data.images import decode, fit
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.metrics import frechet_distance
from smidgen.evaluation.reference import content_key, folder_statistics
from smidgen.evaluation.statistics import read_statistics, write_statistics
from smidgen.sizes import ImageSize

from .conftest import class_folder, colour_extractor, write_image


class Counter:
    count = 0

    def __call__(self):
        self.count += 1


def test_statistics_are_numpys_of_the_features_whatever_the_batch_size(tmp_path):
    folder = scan(class_folder(tmp_path / "images", 5))
    extractor = colour_extractor()
    images = (decode(file.read(), file.path)[0] for file in folder.files)
    pixels = torch.stack(
        [torch.from_numpy(fit(image, ImageSize.of(8), "crop")) for image in images]
    )
    values, logits = extractor.read(pixels)
    for batch_size in (4, 64):
        statistics = folder_statistics(
            folder.root, extractor, batch_size=batch_size, cache_dir=tmp_path / f"{batch_size}"
        )
        np.testing.assert_allclose(statistics.gaussian.mean, values.double().mean(0), rtol=1e-6)
        expected = np.cov(values.double().numpy(), rowvar=False)
        np.testing.assert_allclose(statistics.gaussian.covariance, expected, rtol=1e-5, atol=1e-9)
        assert statistics.predictions["colours"].tolist() == logits["colours"].argmax(1).tolist()
        assert statistics.class_numbers.tolist() == list(folder.class_numbers)


def test_a_folder_is_read_once_and_again_when_anything_that_counts_changes(tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    calls = Counter()
    first = folder_statistics(folder, colour_extractor(on_run=calls))
    again = folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 1
    assert again.identity == first.identity
    assert torch.equal(again.gaussian.covariance, first.gaussian.covariance)
    assert torch.equal(again.predictions["colours"], first.predictions["colours"])
    assert (again.classes, again.class_numbers.tolist()) == (
        first.classes,
        first.class_numbers.tolist(),
    )

    write_image(folder / "red" / "0.png", "red", seed=99)
    folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 2
    (folder / "red" / "1.png").rename(folder / "green" / "9.png")
    folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 3
    folder_statistics(folder, colour_extractor(sha256="colours-2", on_run=calls))
    assert calls.count == 4
    folder_statistics(folder, replace(colour_extractor(on_run=calls), resize="squash"))
    assert calls.count == 5
    folder_statistics(folder, colour_extractor(on_run=calls))  # kept beside the other
    assert calls.count == 5


def test_a_list_that_gives_an_image_another_class_is_another_reference(tmp_path):
    listed = scan(class_folder(tmp_path / "images", 2))
    first, *rest = listed.files
    moved = replace(listed, files=(replace(first, class_number=1), *rest))
    keys = [content_key(images, colour_extractor(), ["hash"] * 6) for images in (listed, moved)]
    assert keys[0] != keys[1]


def test_a_damaged_cache_entry_is_computed_anew(tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    calls = Counter()
    first = folder_statistics(folder, colour_extractor(on_run=calls))
    (entry,) = (tmp_path / "cache").rglob("*.npz")
    entry.write_bytes(entry.read_bytes()[:200])
    again = folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 2
    assert torch.equal(again.gaussian.mean, first.gaussian.mean)


def test_statistics_written_to_a_file_read_back_equal(tmp_path):
    extractor = colour_extractor()
    folder = class_folder(tmp_path / "images", 3)
    first = folder_statistics(folder, extractor, keep_features=True)
    write_statistics(first, tmp_path / "statistics.npz")
    again = read_statistics(tmp_path / "statistics.npz", extractor)
    assert torch.equal(again.gaussian.mean, first.gaussian.mean)
    assert torch.equal(again.gaussian.covariance, first.gaussian.covariance)
    assert again.gaussian.count == first.gaussian.count == 9
    assert again.classes == first.classes
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.mean_direction, first.mean_direction)
    assert again.identity == first.identity
    assert read_statistics(tmp_path / "statistics.npz", extractor, features=False).features is None


def test_another_programs_mu_and_sigma_are_taken(tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.arange(6.0), sigma=np.eye(6))
    statistics = read_statistics(path, colour_extractor())
    assert statistics.gaussian.mean.tolist() == [0, 1, 2, 3, 4, 5]
    assert statistics.gaussian.count == 0
    assert statistics.predictions == {}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(6)}, "sigma"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "have 6"),
        ({"mu": np.zeros(6), "sigma": np.full((6, 6), np.nan)}, "finite numbers"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "meta": '{"extractor": "x"}'}, "other features"),
        ({"mu": np.zeros(6), "sigma": -np.eye(6)}, "no covariance"),
        ({"mu": np.zeros(6), "sigma": np.triu(np.ones((6, 6)))}, "no covariance"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "meta": "{"}, "not a readable"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "meta": "[]"}, "not a readable"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "meta": '{"resize": "clean"}'}, '"clean"'),
        (
            {"mu": np.zeros(6), "sigma": np.eye(6), "meta": '{"count": "many"}'},
            r"got `str` - at `\$\.count`",
        ),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "meta": '{"format_version": 3}'}, "up to 2"),
        ({"mu": np.array(["a"] * 6), "sigma": np.eye(6)}, "finite numbers"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "features": np.ones((9, 5))}, r"\(N, 6\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(arrays, message, tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, **arrays)
    with pytest.raises(SmidgenError, match=message):
        read_statistics(path, colour_extractor())


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "statistics.npz"
    for content in (b"", b"text", b"PK\x03\x04 torn"):
        path.write_bytes(content)
        with pytest.raises(SmidgenError, match=r"not a readable \.npz"):
            read_statistics(path, colour_extractor())


def test_features_join_an_entry_that_lacks_them_and_are_not_read_again(tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    calls = Counter()
    assert folder_statistics(folder, colour_extractor(on_run=calls)).features is None
    kept = folder_statistics(folder, colour_extractor(on_run=calls), keep_features=True)
    assert calls.count == 2
    again = folder_statistics(folder, colour_extractor(on_run=calls), keep_features=True)
    assert folder_statistics(folder, colour_extractor(on_run=calls)).features is None
    assert calls.count == 2
    assert torch.equal(again.features, kept.features)
    assert len(kept.features) == 6


def test_a_folder_without_classes_names_none(tmp_path):
    for number in range(3):
        write_image(tmp_path / "flat" / f"{number}.png", "red", seed=number)
    statistics = folder_statistics(tmp_path / "flat", colour_extractor())
    assert statistics.classes == ()
    assert len(statistics.class_numbers) == 0


def test_what_cannot_be_read_is_counted(tmp_path):
    folder = class_folder(tmp_path / "images", 3)
    (folder / "red" / "torn.png").write_bytes((folder / "red" / "0.png").read_bytes()[:60])
    for _ in ("computed", "from the cache"):
        statistics = folder_statistics(folder, colour_extractor())
        assert statistics.num_skipped == 1
        assert statistics.gaussian.count == len(statistics.class_numbers) == 9
    for path in (folder / "red").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(SmidgenError, match='class folder "red"'):
        folder_statistics(folder, colour_extractor())


def test_a_reference_of_another_layout_is_its_split(tmp_path):
    for part in ("train", "test"):
        class_folder(tmp_path / "data" / part, 2, seed=len(part))
    whole = folder_statistics(tmp_path / "data" / "test", colour_extractor())
    split = folder_statistics(tmp_path / "data", colour_extractor(), split="test")
    assert torch.equal(split.gaussian.mean, whole.gaussian.mean)
    assert split.classes == whole.classes
    with pytest.raises(UsageError, match="unknown layout"):
        folder_statistics(tmp_path / "data", colour_extractor(), layout="food-202")


def test_published_statistics_count_for_the_features_they_were_made_with(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    path = tmp_path / "reference.npz"
    np.savez(path, arr_0=images, mu=np.arange(6.0), sigma=np.eye(6), mu_s=np.zeros(3))
    own = folder_statistics(path, colour_extractor(), keep_features=True)
    np.testing.assert_allclose(own.gaussian.mean, own.features.double().mean(0))
    legacy = replace(colour_extractor(), name="inception", resize="legacy")
    for _ in ("computed", "from the cache"):
        published = folder_statistics(path, legacy, keep_features=True)
        assert published.gaussian.mean.tolist() == [0, 1, 2, 3, 4, 5]
        assert published.gaussian.count == 0  # nobody says of how many images
        assert torch.equal(published.features, own.features)
    mean, cov = own.gaussian.mean, own.gaussian.covariance
    assert frechet_distance(mean, cov, mean, cov) < 1e-9


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8, 3)), "float64"),
        (np.zeros((2, 8, 8), np.uint8), r"\(2, 8, 8\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message, tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=array)
    with pytest.raises(SmidgenError, match=message):
        folder_statistics(tmp_path / "batch.npz", colour_extractor())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_and_damaged_arrays_are_refused(save, tmp_path):
    images = np.random.default_rng(0).integers(0, 4, (50, 8, 8, 3), np.uint8)
    path = tmp_path / "batch.npz"
    save(path, arr_0=images)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SmidgenError, match="not a readable"):
        folder_statistics(path, colour_extractor())
    for place in range(158, len(content) - 200, 199):  # whole, but another byte in the array
        damaged = bytearray(content)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(SmidgenError, match="not a readable"):
            folder_statistics(path, colour_extractor())


def test_other_arrays_of_another_program_are_left_alone(tmp_path):
    path = tmp_path / "theirs.npz"
    arrays = {"labels": np.array(["a", "b"]), "mean_direction": np.zeros((2, 2))}
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6), **arrays)
    statistics = read_statistics(path, colour_extractor())
    assert len(statistics.class_numbers) == 0
    assert statistics.mean_direction is None
