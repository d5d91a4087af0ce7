"""Answers from a store: `lookup.py` follows what is published, `overlay.py` says what is newer than a snapshot."""
