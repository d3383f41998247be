"""The server: a queue of renders and downloads, an HTTP API, and the process that keeps models loaded.

Nothing here is imported unless `civman serve` runs or a command hands its work to a running server.
"""
