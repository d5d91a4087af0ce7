"""Replay: send logged requests through the whole funnel, by look-up and by online search, and compare the results."""
