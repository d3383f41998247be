"""Turning stored files into pictures. The only code that imports torch, transformers or diffusers."""
