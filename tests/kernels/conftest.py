"""Which instruction sets a test runs on: every one that this machine has, the emulated tiles among them."""

import pytest

from nearcast.kernels import isa_info


def _all_isas() -> tuple[str, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NEARCAST_ISA", raising=False)
        return isa_info().available


ISAS = _all_isas()
EMULATED = "amx-emulated"


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch) -> str:
    monkeypatch.setenv("NEARCAST_ISA", request.param)
    return request.param


@pytest.fixture(params=[name for name in ISAS if name != "numpy"])
def native_isa(request, monkeypatch) -> str:
    monkeypatch.setenv("NEARCAST_ISA", request.param)
    return request.param
