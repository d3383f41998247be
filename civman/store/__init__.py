"""The only code that touches blobs."""
