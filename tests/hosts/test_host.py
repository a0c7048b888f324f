"""How a host is found."""

import pytest
from torch import nn

from smidgen.errors import SmidgenError
from smidgen.hosts.dit import FAMILY as DIT
from smidgen.hosts.host import HOSTS, class_path, find_family, find_host
from tests.tiny.hosts import TINY_HOSTS


def test_every_host_has_a_tiny_base_for_the_laws():
    models = {name: tiny.make(3) for name, tiny in TINY_HOSTS.items()}
    paths = [class_path(model) for model in models.values()]
    assert sorted(path for path in paths if path in HOSTS) == sorted(HOSTS)
    for name, model in models.items():
        family = name if class_path(model) in HOSTS else "derived"
        assert find_host(model).family == family


def test_a_class_without_an_entry_gets_a_derived_host_but_no_family():
    model = nn.Sequential(nn.Linear(2, 2))
    assert find_host(model).family == "derived"
    with pytest.raises(SmidgenError, match=r"torch\.nn\.modules\.container\.Sequential"):
        find_family(model)


def test_a_subclass_is_not_taken_for_its_parent():
    class Changed(type(TINY_HOSTS["dit"].make(3))):
        pass

    model = TINY_HOSTS["dit"].make(3)
    assert find_family(model) is DIT
    model.__class__ = Changed
    assert find_host(model).family == "derived"
    with pytest.raises(SmidgenError, match="Changed"):
        find_family(model)


def test_a_missing_tap_is_named_with_the_ones_that_exist():
    host = find_host(TINY_HOSTS["dit"].make(3))
    with pytest.raises(SmidgenError, match=r'no tap "cross.out"; it has: patch.out'):
        host.tap("cross.out")
    with pytest.raises(SmidgenError, match=r'block 1 .* no tap "attn2.out"; it has: block.in'):
        host.block_tap(1, "attn2.out")
