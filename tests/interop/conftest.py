"""The pipelines of cases.py, each made once for all files of this folder."""

import pytest


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """The case of a family, made when it is first asked for."""
    from tests.interop.cases import Case

    made = {}

    def case(family):
        if family not in made:
            made[family] = Case(family, tmp_path_factory.mktemp(family))
        return made[family]

    return case
