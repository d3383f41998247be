"""Identifies model files from their headers alone: the rules, and the claims in the files' metadata."""
