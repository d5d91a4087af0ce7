"""The candidate table: its schema, writing it, and the snapshots that it is kept in.

A snapshot is never edited. Knows nothing of engines, or of how candidates were found.
"""
