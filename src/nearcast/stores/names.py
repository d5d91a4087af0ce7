"""Names that a store may use in paths and keys: the generator's and the version's.

Knows nothing of any store. A name that is not a generator's is refused before it touches a path.
"""

from __future__ import annotations

import re

from nearcast.errors import SpecError

__all__ = ["checked_generator", "is_generator", "version_name"]

GENERATOR = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")  # as `spec.Name`; a test holds them together


def is_generator(name: str) -> bool:
    """Whether a generator may be called so."""
    return GENERATOR.fullmatch(name) is not None


def checked_generator(name: str) -> str:
    """The name; SpecError where no generator may be called so."""
    if not is_generator(name):
        raise SpecError(
            f"generator is {name[:120]!r}: use lower-case letters, digits and - _ . and start with a letter or digit"
        )
    return name


def version_name(version: int) -> str:
    """A version as people write it, such as 000007; SpecError where it is no version."""
    if version < 1:
        raise SpecError(f"version is {version}: versions are whole numbers from 1")
    return f"{version:06d}"
