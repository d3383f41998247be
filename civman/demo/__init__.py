"""A small CivitAI-compatible server on loopback and its catalogue (standard library only)."""
