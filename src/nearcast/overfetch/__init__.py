"""How many candidates to store, so that enough of them survive until the request.

A candidate that is in the table may be gone when it is asked for: its budget is spent, it is paused, out of stock, or
the request's own rules bar it. Given the probability that each one survives, `plan_lengths` finds how many a query
needs, and `plan_within` shares out a table of a given size. Arrays only, but for `log`, which reads look-ups.
"""
