"""The kNN join on arrays: what a score is, how the best are kept, and the exact join that referees all others.

Arrays in, arrays out. Knows no files, ids, specs or engines.
"""
