"""The page: every generator at a glance, and any list looked into. Drawn from what is recorded; nothing is measured."""
