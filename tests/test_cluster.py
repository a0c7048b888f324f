"""A Ray cluster that is not there is said at once, in one line."""

import pytest

from smidgen.cluster import joined
from smidgen.errors import SmidgenError
from tests.launch import free_port

pytest.importorskip("ray")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_where_nothing_listens_there_is_no_cluster(form):
    address = form.format(free_port())
    with (
        pytest.raises(SmidgenError, match=rf"^no Ray cluster at {address} \([^\n]*$"),
        joined(address),
    ):
        pass


def test_an_address_that_is_none_is_refused():
    with pytest.raises(SmidgenError, match=r"no Ray cluster at 127\.0\.0\.1:99999999"):
        joined("127.0.0.1:99999999").__enter__()
