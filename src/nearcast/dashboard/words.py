"""The words of troubles, under the name that they had before `nearcast.monitoring.words`."""

from nearcast.monitoring.words import LEVELS, TROUBLES, Level, Words

__all__ = ["LEVELS", "TROUBLES", "Level", "Words"]
