"""How a host is found."""

import pytest
from torch import nn

from smidgen.errors import SmidgenError
from smidgen.hosts.host import HOSTS, find_host
from tests.laws.tiny import TINY_HOSTS


def test_every_host_has_a_tiny_base_for_the_laws():
    found = {find_host(tiny.make(3)).family for tiny in TINY_HOSTS.values()}
    assert found == set(TINY_HOSTS)
    assert len(HOSTS) == len(TINY_HOSTS)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(SmidgenError) as error:
        find_host(nn.Linear(2, 2))
    assert "torch.nn.modules.linear.Linear" in str(error.value)
    assert all(path in str(error.value) for path in HOSTS)


def test_a_subclass_is_not_taken_for_its_parent():
    class Changed(type(TINY_HOSTS["dit"].make(3))):
        pass

    model = TINY_HOSTS["dit"].make(3)
    model.__class__ = Changed
    with pytest.raises(SmidgenError, match="Changed"):
        find_host(model)


def test_a_missing_tap_is_named_with_the_ones_that_exist():
    host = find_host(TINY_HOSTS["dit"].make(3))
    with pytest.raises(SmidgenError, match=r'no tap "cross.out"; it has: patch.out'):
        host.tap("cross.out")
    with pytest.raises(SmidgenError, match=r'block 1 .* no tap "attn2.out"; it has: norm1.out'):
        host.block_tap(1, "attn2.out")
