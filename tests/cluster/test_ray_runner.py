"""The runner `ray` on a real cluster of two nodes: the contract of a runner, and workers that are killed."""

from __future__ import annotations

import pytest
from cluster_contract import ClusterContract

from nearcast.errors import SpecError
from nearcast.runners import make_runner


@pytest.fixture(scope="module")
def runner(ray_runner):
    return ray_runner


class TestOnRay(ClusterContract):
    """The suite."""

    lost = "its Ray worker was lost"


def test_an_unknown_option_is_an_error():
    with pytest.raises(SpecError, match="runner 'ray' has no option 'adress'; did you mean 'address'"):
        make_runner("ray", options={"adress": "auto"})
