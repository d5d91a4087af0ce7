"""Publish a snapshot: audit it, copy it into a store, read it back, and move the store's pointer."""
