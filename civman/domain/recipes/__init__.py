"""Requests, recipes and the records that images carry."""
