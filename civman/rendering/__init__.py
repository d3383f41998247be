"""Runs plans: renders, saves and records pictures; replays and compares them; imports and describes them."""
