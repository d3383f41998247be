"""Reads and writes the metadata in image files. No torch, no network, no library.

`image_text` handles the file formats, `parameters_text` the text that A1111 and CivitAI read, and `other_programs` the
metadata of other programs. Pillow is imported only when an image is read or written.
"""
