"""Downloading: choose the file, check that it may be downloaded, fetch it, verify it, store it and index it."""
