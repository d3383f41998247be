"""Stores the library's files on disk. No other package writes them."""
