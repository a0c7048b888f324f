"""How the rows of a new label table start."""

from dataclasses import replace

import pytest
import torch

from smidgen.core.edits import Table
from smidgen.errors import SmidgenError
from smidgen.methods.label_table import label_edits, label_table
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, base_of, law_base
from tests.tiny.hosts import TINY_HOSTS

MANY_CLASSES = tuple(f"class {n}" for n in range(400))


def _table(base, classes, seed=0) -> Table:
    return label_table(base, classes, torch.Generator().manual_seed(seed))


def _old_rows(base):
    return base.denoiser.get_parameter("y_embedder.embedding_table.weight")


def test_the_null_row_is_kept_and_known_classes_are_copied():
    base = law_base("dit")
    rows, old = _table(base, NEW_CLASSES).rows, _old_rows(base)
    assert rows.shape == (len(NEW_CLASSES) + 1, 16)
    assert torch.equal(rows[-1], old[-1])
    assert torch.equal(rows[NEW_CLASSES.index("bee")], old[KNOWN_CLASSES.index("bee")])


def test_the_table_remembers_which_rows_of_the_base_it_began_with():
    base = law_base("dit")
    origin = _table(base, NEW_CLASSES).origin
    assert origin == (KNOWN_CLASSES.index("bee"), None, None, None, len(KNOWN_CLASSES))
    nameless = replace(base, class_names=())
    assert _table(nameless, NEW_CLASSES).origin == (*(None,) * 4, len(KNOWN_CLASSES))


def test_a_base_without_labels_has_no_table_and_takes_no_classes():
    base = law_base("unet")
    assert label_edits(base, (), torch.Generator()) == {}
    with pytest.raises(SmidgenError, match=r"unet base has no label table for 4 classes"):
        label_edits(base, NEW_CLASSES, torch.Generator())


def test_new_classes_start_around_the_mean_of_the_old_class_rows():
    base = law_base("dit")
    rows = _table(base, MANY_CLASSES).rows[:-1]
    noise = (rows - _old_rows(base)[:-1].mean(0)).flatten()  # 6,400 draws of N(0, 0.02)
    assert noise.mean().abs() < 5 * 0.02 / 80
    assert (noise.std() / 0.02 - 1).abs() < 5 / (2 * 6400) ** 0.5


def test_the_generator_decides_the_rows():
    base = law_base("dit")
    assert torch.equal(_table(base, NEW_CLASSES).rows, _table(base, NEW_CLASSES).rows)
    assert not torch.equal(_table(base, NEW_CLASSES).rows, _table(base, NEW_CLASSES, seed=1).rows)


def test_the_rows_of_a_half_precision_base_train_in_float32():
    base = law_base("dit")
    base.denoiser.bfloat16()
    assert _table(base, NEW_CLASSES).rows.dtype == torch.float32


def test_on_the_meta_device_the_table_has_its_shape_and_draws_nothing():
    with torch.device("meta"):
        model = TINY_HOSTS["dit"].make(3)
    base = base_of(model, KNOWN_CLASSES)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    table = label_table(base, NEW_CLASSES, generator)
    assert table.rows.is_meta
    assert table.rows.shape == (5, 16)
    assert torch.equal(generator.get_state(), before)


def test_a_base_without_class_names_knows_none():
    base = law_base("dit")
    base.class_names = ()
    rows, old = _table(base, NEW_CLASSES).rows, _old_rows(base)
    assert torch.equal(rows[-1], old[-1])
    assert not any(torch.equal(row, known) for row in rows[:-1] for known in old)


@pytest.mark.parametrize(("classes", "message"), [((), "no classes"), (("elk", "elk"), "elk")])
def test_bad_classes_are_refused(classes, message):
    with pytest.raises(SmidgenError, match=message):
        _table(law_base("dit"), classes)


def test_class_names_that_do_not_fit_the_table_are_refused():
    base = law_base("dit")
    base.class_names = ("ant",)
    with pytest.raises(SmidgenError, match="3 classes but 1 class names"):
        _table(base, NEW_CLASSES)
