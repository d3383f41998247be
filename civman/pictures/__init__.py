"""The metadata in image files, and how it is written and read. No torch, no network, no library.

`image_text` knows the file formats, `parameters_text` the text that A1111 and CivitAI read, and `other_programs` the
metadata of other programs. Pillow is imported only when there is an image to read.
"""
