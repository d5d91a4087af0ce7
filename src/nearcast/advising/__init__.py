"""Which keys are worth a list made ahead, and whether a use case should be offline, online or both; in numbers."""
