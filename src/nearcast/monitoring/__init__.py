"""Watching: what is usual, what is not, how stale the served table is, and who is told."""
