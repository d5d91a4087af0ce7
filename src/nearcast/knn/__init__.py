"""The kNN join on arrays: the definition of a score, the request, and the exact join, the reference of all others.

Arrays in, arrays out. Knows no files, ids, specs or engines.
"""
