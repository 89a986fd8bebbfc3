"""The input of the runs of the filter."""

import pytest

from tests.experiments.filtering.runs import write


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A folder of toy pages, and the pages by id."""
    folder = tmp_path_factory.mktemp("raw") / "toy"
    return folder, {d["id"]: d for d in write(folder)}
