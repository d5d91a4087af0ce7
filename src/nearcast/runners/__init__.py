"""Runners carry tasks: a list of them in, each done somewhere, in any order. They know nothing of kNN."""
