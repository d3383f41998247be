"""Render requests, recipes, and the records that images contain."""
