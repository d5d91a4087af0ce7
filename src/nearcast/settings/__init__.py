"""Settings that are read from TOML: the base class of their tables, parsing, and the tables of a generator's spec.

Knows nothing of the data: the sources check that files and columns exist.
"""
