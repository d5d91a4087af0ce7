"""Over-fetch: the number of candidates to store, so that enough of them are eligible at the request.

A stored candidate may be ineligible when it is looked up: its budget is spent, it is paused or out of stock, or a rule
of the request filters it out. From the survival probability of each candidate, `plan_lengths` computes the number of
candidates each query needs, and `plan_within` distributes the slots of a table of a given size. `survival_log` reads a
log of look-ups; all other modules take and return arrays.
"""
