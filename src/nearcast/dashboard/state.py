"""How a generator stands, under the name that it had before `nearcast.monitoring.standing`."""

from nearcast.monitoring.standing import Live, State, Trouble, live_of, newest_runs, state_of

__all__ = ["Live", "State", "Trouble", "live_of", "newest_runs", "state_of"]
