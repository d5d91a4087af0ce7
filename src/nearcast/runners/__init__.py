"""Runners run lists of tasks: the contract is in `base.py`, each runner in one file. They know nothing of kNN."""
