"""Renders plans, saves and records the pictures, replays and compares them, and imports and describes pictures."""
