"""Errors of the system, in the words of nearcast."""

from __future__ import annotations

import numpy as np
import pytest

from nearcast.errors import BudgetError, SpecError
from nearcast.storage.path_errors import explain_os_error


@pytest.mark.parametrize("write", [lambda file, array: np.save(file, array), lambda file, array: array.tofile(file)])
def test_a_disk_that_fills_while_numpy_writes_is_a_full_disk(write):
    with pytest.raises(OSError, match=r"written|No space") as raised, open("/dev/full", "wb", buffering=0) as file:
        write(file, np.zeros(1 << 16))
    explained = explain_os_error(raised.value)
    assert isinstance(explained, BudgetError)
    assert "free some disk" in str(explained)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3a://key:se/cret@bucket/x is not", "s3a://***@bucket/x is not"),
        (
            "(https://user:secret@host/a) and postgresql+x://:secret@h/db",
            "(https://***@host/a) and postgresql+x://***@h/db",
        ),
        ("http://127.0.0.1:80/a@b and s3://bucket/a@b", "http://127.0.0.1:80/a@b and s3://bucket/a@b"),
        ("write redis://[user:password@]host", "write redis://[user:password@]host"),
    ],
)
def test_no_error_shows_the_login_of_a_url(text, shown):
    assert str(SpecError(text)) == shown
