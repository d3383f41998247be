"""The library's files on disk. The only code that writes them."""
