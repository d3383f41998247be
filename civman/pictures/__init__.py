"""What pictures carry beside their pixels, and how it is written and read: no torch, no network, no library.

`container` knows the file formats, `parameters` the text that A1111 and CivitAI read, `foreign` the habits of other
tools. Pillow is loaded when there is a picture.
"""
