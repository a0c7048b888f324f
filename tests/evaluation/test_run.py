"""One evaluation as a document: the numbers, what they depend on, and warnings."""

import json

import pytest

from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.metrics import frechet_distance
from smidgen.evaluation.reference import folder_statistics, write_statistics
from smidgen.evaluation.run import evaluate

from .conftest import COLOURS, class_folder, colour_extractor, write_image


def samples(root, intended, shown):
    """A flat folder as sampling writes it."""
    for number, (name, colour) in enumerate(zip(intended, shown, strict=True)):
        write_image(root / f"{number:06d}-{name}.png", colour, seed=500 + number)
    return root


def test_a_folder_against_itself_has_distance_zero_and_full_agreement(tmp_path):
    folder = class_folder(tmp_path / "images", 5)
    document = evaluate(folder, folder, features="colours")
    assert document["metrics"]["fd"] == pytest.approx(0, abs=1e-9)
    assert document["metrics"]["class_agreement"] == 1
    assert document["baselines"]["class_agreement_by_chance"] == pytest.approx(1 / 3)
    assert document["baselines"]["class_agreement_of_reference"] == 1
    assert document["warnings"] == []
    json.dumps(document)


def test_distance_is_the_metric_of_the_two_folders(tmp_path):
    first, second = class_folder(tmp_path / "a", 5), class_folder(tmp_path / "b", 4, seed=1)
    a, b = (folder_statistics(path, colour_extractor()).gaussian for path in (first, second))
    expected = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert evaluate(first, second, features="colours")["metrics"]["fd"] == expected
    assert expected > 0


def test_agreement_counts_the_images_that_show_what_their_name_says(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    folder = samples(
        tmp_path / "flat", ["red", "green", "red", "blue"], ["red", "red", "red", "blue"]
    )
    document = evaluate(folder, reference, features="colours")
    assert document["metrics"]["class_agreement"] == 0.75
    assert document["agreement_by_class"] == {"blue": 1, "green": 0, "red": 1}


def test_the_sampling_record_goes_before_the_file_name_and_into_the_protocol(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    folder = samples(tmp_path / "flat", ["x_y", "red"], ["green", "red"])
    record = {"settings": {"guidance": 4.0}, "images": {"000000-x_y.png": "green"}}
    (folder / "sample.json").write_text(json.dumps(record))
    document = evaluate(folder, reference, features="colours")
    assert document["metrics"]["class_agreement"] == 1
    assert document["protocol"]["sampling"] == {"guidance": 4.0}
    assert not any("not finish" in text or "skip" in text for text in document["warnings"])
    (folder / "sample.json").write_text(json.dumps({**record, "finished": False}))
    warnings = evaluate(folder, reference, features="colours")["warnings"]
    assert any("did not finish" in warning for warning in warnings)
    (folder / "sample.json").write_text("{")
    with pytest.raises(SmidgenError, match="damaged"):
        evaluate(folder, reference, features="colours")


@pytest.mark.parametrize("intended", [["red", "mauve"], ["alpha", "beta"]])
def test_agreement_is_unknown_with_a_warning_where_no_head_knows_the_classes(intended, tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    document = evaluate(
        samples(tmp_path / "flat", intended, ["red", "green"]), reference, features="colours"
    )
    assert document["metrics"]["class_agreement"] is None
    assert document["metrics"]["fd"] > 0
    assert any("no head" in warning for warning in document["warnings"])


def test_agreement_is_unknown_where_nothing_names_the_classes(tmp_path):
    write_image(tmp_path / "flat" / "photo.png", "red", seed=1)
    reference = class_folder(tmp_path / "reference", 5)
    document = evaluate(tmp_path / "flat", reference, features="colours")
    assert document["metrics"]["class_agreement"] is None
    assert any("nothing says" in warning for warning in document["warnings"])


def test_fewer_images_than_dimensions_warn_and_still_give_the_number(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    for count in (1, 6):
        folder = samples(tmp_path / f"few-{count}", ["red"] * count, ["red"] * count)
        document = evaluate(folder, reference, features="colours")
        assert document["metrics"]["fd"] > 0
        assert any(f"{count} images for 6 feature" in text for text in document["warnings"])
    assert evaluate(reference, reference, features="colours")["warnings"] == []


def test_statistics_in_a_file_give_the_folders_numbers(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    folder = samples(tmp_path / "flat", COLOURS, COLOURS)
    path = tmp_path / "reference.npz"
    write_statistics(folder_statistics(reference, colour_extractor()), path)
    from_folder = evaluate(folder, reference, features="colours")
    from_file = evaluate(folder, path, features="colours")
    assert from_file["metrics"] == from_folder["metrics"]
    assert from_file["baselines"] == from_folder["baselines"]
    assert from_file["protocol"]["num_reference"] == 15


def test_the_protocol_says_what_the_numbers_depend_on(tmp_path):
    folder = class_folder(tmp_path / "images", 3)
    protocol = evaluate(folder, folder, features="colours")["protocol"]
    assert protocol["features"] == "colours"
    assert protocol["features_sha256"] == "colours-1"
    assert (protocol["num_images"], protocol["num_reference"]) == (9, 9)
    assert protocol["resize"] == "crop, antialiased bicubic"
    assert protocol["images_identity"] == protocol["reference_identity"]
    assert "torch" in protocol["versions"]


def test_what_cannot_be_read_is_counted_and_named(tmp_path):
    folder = class_folder(tmp_path / "images", 3)
    (folder / "red" / "torn.png").write_bytes((folder / "red" / "0.png").read_bytes()[:60])
    document = evaluate(folder, folder, features="colours")
    assert [entry["file"] for entry in document["skipped"]] == ["red/torn.png"]
    assert any("1 of the files" in warning for warning in document["warnings"])


@pytest.mark.parametrize("wrong", ["images", "reference", "features", "file"])
def test_misuse_is_refused(wrong, tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    (tmp_path / "notes.txt").write_text("x")
    arguments = {"images": folder, "reference": folder, "features": "colours"}
    change = {
        "images": {"images": tmp_path / "none"},
        "reference": {"reference": tmp_path / "none"},
        "features": {"features": "inception"},
        "file": {"reference": tmp_path / "notes.txt"},
    }
    with pytest.raises(UsageError):
        evaluate(**{**arguments, **change[wrong]})
