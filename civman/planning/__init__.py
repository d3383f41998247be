"""Plans renders: resolves everything that determines the pictures, before any weights are loaded and without torch."""
