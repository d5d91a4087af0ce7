"""Monitoring: check runs against usual values, and the served version against today's items; record and send alerts."""
