"""Evaluation of lists by labels: read the labels, find the labelled items in lists, compute metrics with intervals.

Engines, score terms, ranking, over-fetch and tuning do not import this room, so that nothing learns from labels.
"""
