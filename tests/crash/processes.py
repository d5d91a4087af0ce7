"""Processes to be killed: real ones, forked from a server that has imported everything, so that they start at once."""

from __future__ import annotations

import multiprocessing

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.crash.worker", "tests.crash.publisher", "tests.crash.survivor", "faiss"])
