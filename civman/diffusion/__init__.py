"""Render images from model files. The only package that imports torch, transformers or diffusers."""
