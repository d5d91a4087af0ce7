"""One run of a generator: validate and ingest inputs, build an index, join in tasks, write the table, measure it.

`run.py` calls these stages in order; each is in a separate file. A task is a pure function from files to files.
"""
