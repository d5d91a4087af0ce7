"""Serve look-ups, merged lists, and ads over HTTP: endpoints, schemas, authentication, limits, and metrics."""
