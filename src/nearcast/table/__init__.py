"""The candidate table: schema, writer, and the snapshots that hold it.

A snapshot is never edited. Knows nothing of engines, or of how candidates were found.
"""
