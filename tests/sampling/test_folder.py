"""A folder of drawn images is what its record says, and nothing that is not ours is touched."""

import json
import re

import pytest
from PIL import Image

from smidgen.errors import SmidgenError, UsageError
from smidgen.files.standing import START_OVER
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.sampling.folder import fill_folder, image_name, read_record, standing_of
from tests.tiny.bases import tiny_base

SETTINGS = {"steps": 2, "seed": 0, "sampler": None}


def fill(folder, **settings):
    drawing = prepare(tiny_base(), SamplingConfig(steps=2, num_images=4, **settings))
    return fill_folder(drawing, folder, SETTINGS | settings)


def test_the_record_lists_the_images_in_order_and_names_the_sampler(tmp_path):
    record = fill(tmp_path)
    names = ["000000-ant.png", "000001-bee.png", "000002-cat.png", "000003-ant.png"]
    assert list(record.images) == names
    assert record == read_record(tmp_path)
    assert (record.finished, record.settings["sampler"]) == (True, "ddpm")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names


def test_an_image_that_breaks_off_is_not_there(tmp_path, monkeypatch):
    def write_a_part(image, path, **options):
        path.write_bytes(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", write_a_part)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


def test_the_same_request_is_finished_and_another_is_refused(tmp_path):
    assert standing_of(tmp_path, SETTINGS) == "new"
    fill(tmp_path)
    assert standing_of(tmp_path, SETTINGS) == "finished"
    assert standing_of(tmp_path, SETTINGS | {"sampler": "ddpm"}) == "finished"
    with pytest.raises(UsageError, match="seed 0 -> 1"):
        standing_of(tmp_path, SETTINGS | {"seed": 1})
    assert standing_of(tmp_path, SETTINGS | {"seed": 1}, force=True) == "new"
    (tmp_path / "000001-bee.png").unlink()
    assert standing_of(tmp_path, SETTINGS) == "begun"


def test_pictures_of_others_are_never_overwritten(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "holiday.png")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"holds other pictures, such as holiday\.png"):
            standing_of(tmp_path, SETTINGS, force=force)


def test_a_record_that_names_a_file_of_the_users_does_not_delete_it(tmp_path):
    fill(tmp_path)
    record = json.loads((tmp_path / "sample.json").read_text())
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "000009-mine.png").write_text("mine")
    record["images"] |= {"thesis.txt": "ant", "../outside.png": "bee", "000009-mine.png": "cat"}
    (tmp_path / "sample.json").write_text(json.dumps(record))
    fill(tmp_path, seed=1)
    assert (tmp_path / "thesis.txt").exists()
    assert (tmp_path / "000009-mine.png").exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"images": [1]}', '{"settings": 3}', "[" * 100_000])
def test_another_programs_record_is_told_in_one_line(tmp_path, text):
    (tmp_path / "sample.json").write_text(text)
    with pytest.raises(SmidgenError, match="is no record of smidgen sample") as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=re.escape(START_OVER)):
        standing_of(tmp_path, SETTINGS)
    assert standing_of(tmp_path, SETTINGS, force=True) == "new"


def test_names_of_files_hold_no_path():
    assert image_name(3, "a/b\\c").startswith("000003-a_b_c~")
    assert image_name(3, "plain") == "000003-plain.png"
