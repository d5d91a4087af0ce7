"""Live updates of a served version: new, changed and removed items, and new queries, between two runs."""
