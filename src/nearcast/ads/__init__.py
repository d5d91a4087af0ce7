"""The second step of a call: the ads of candidates. Expansion tables, targets and rules, budgets, caps.

Knows nothing of HTTP.
"""
