"""The history of all generators of a folder: a row of plain facts for each run, publish, rollback and monitor pass."""
