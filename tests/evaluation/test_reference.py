"""Statistics of folders and files: right, cached under their content, checked when read."""

import numpy as np
import pytest
import torch

from smidgen.data.folder import scan
from smidgen.data.images import load_image
from smidgen.errors import SmidgenError
from smidgen.evaluation.reference import (
    compute_statistics,
    folder_statistics,
    read_statistics,
    write_statistics,
)

from .conftest import class_folder, colour_extractor, write_image


class Counter:
    count = 0

    def __call__(self):
        self.count += 1


def test_statistics_are_numpys_of_the_features_whatever_the_batch_size(tmp_path):
    folder = scan(class_folder(tmp_path / "images", 5))
    extractor = colour_extractor()
    pixels = torch.stack([load_image(file.path, 8, "crop")[0] for file in folder.files])
    values, logits = extractor.read(pixels)
    for batch_size in (4, 64):
        statistics = compute_statistics(folder, extractor, batch_size=batch_size)
        np.testing.assert_allclose(statistics.gaussian.mean, values.double().mean(0), rtol=1e-6)
        expected = np.cov(values.double().numpy(), rowvar=False)
        np.testing.assert_allclose(statistics.gaussian.covariance, expected, rtol=1e-5, atol=1e-9)
        assert statistics.predictions["colours"].tolist() == logits["colours"].argmax(1).tolist()
        assert statistics.labels.tolist() == list(folder.labels)


def test_a_folder_is_read_once_and_again_when_anything_that_counts_changes(tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    calls = Counter()
    first = folder_statistics(folder, colour_extractor(on_run=calls))
    again = folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 1
    assert again.identity == first.identity
    assert torch.equal(again.gaussian.covariance, first.gaussian.covariance)
    assert torch.equal(again.predictions["colours"], first.predictions["colours"])
    assert (again.classes, again.labels.tolist()) == (first.classes, first.labels.tolist())

    write_image(folder / "red" / "0.png", "red", seed=99)
    folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 2
    (folder / "red" / "1.png").rename(folder / "green" / "9.png")
    folder_statistics(folder, colour_extractor(on_run=calls))
    assert calls.count == 3
    folder_statistics(folder, colour_extractor(sha256="colours-2", on_run=calls))
    assert calls.count == 4


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
    first = compute_statistics(scan(class_folder(tmp_path / "images", 3)), extractor)
    write_statistics(first, tmp_path / "statistics.npz")
    again = read_statistics(tmp_path / "statistics.npz", extractor)
    assert torch.equal(again.gaussian.mean, first.gaussian.mean)
    assert torch.equal(again.gaussian.covariance, first.gaussian.covariance)
    assert again.gaussian.count == first.gaussian.count == 9
    assert again.classes == first.classes


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
        ({"mu": np.zeros(6), "sigma": np.eye(6), "meta": "{"}, "not a readable"),
        ({"mu": np.array(["a"] * 6), "sigma": np.eye(6)}, "finite numbers"),
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
