"""Indexes as artifacts: built once, found again by fingerprint, opened by path. Knows nothing of queries."""
