"""Settle everything that decides an image before a weight is loaded. No torch."""
