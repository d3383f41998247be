"""Pictures over a library: `plan` settles everything before a weight is loaded, `render` makes the pictures.

Planning needs no torch; `civman.rendering.making` is where the engine in `civman.render` is called.
"""
