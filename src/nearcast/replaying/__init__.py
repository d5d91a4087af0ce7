"""Replay: yesterday's requests through the whole funnel, by look-up and by online search, side by side."""
