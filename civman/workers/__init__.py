"""Renders with several processes, on this machine or on many."""
