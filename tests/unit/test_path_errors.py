"""Errors of the system, in the words of nearcast."""

from __future__ import annotations

import numpy as np
import pytest

from nearcast.errors import BudgetError
from nearcast.storage.path_errors import explain_os_error


@pytest.mark.parametrize("write", [lambda file, array: np.save(file, array), lambda file, array: array.tofile(file)])
def test_a_disk_that_fills_while_numpy_writes_is_a_full_disk(write):
    with pytest.raises(OSError, match=r"written|No space") as raised, open("/dev/full", "wb", buffering=0) as file:
        write(file, np.zeros(1 << 16))
    explained = explain_os_error(raised.value)
    assert isinstance(explained, BudgetError)
    assert "free some disk" in str(explained)
