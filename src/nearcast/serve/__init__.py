"""Answers from a store: `lookup.py` follows the published versions, `overlay.py` writes newer changes."""
