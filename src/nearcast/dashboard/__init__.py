"""The dashboard: a page about all generators, with an explorer of lists. It shows the records and measures nothing."""
