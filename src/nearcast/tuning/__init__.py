"""Tuning: the cheapest way to the promised recall, found on samples before the whole job is paid for."""
