"""One run of a generator: inputs checked and ingested, an index, the join cut into tasks, the table, measures.

`run.py` is the order of these stages; each has its own file. A task is a pure function from files to files.
"""
