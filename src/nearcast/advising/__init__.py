"""Advising: find the head of the traffic, estimate the cost of offline, online and mixed serving, recommend one."""
