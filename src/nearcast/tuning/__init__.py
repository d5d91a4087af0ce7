"""Tuning: find the cheapest engine and settings that meet the recall target, on samples."""
