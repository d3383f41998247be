"""A small CivitAI-compatible server on loopback with its own models. Standard library only."""
