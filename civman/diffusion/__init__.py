"""Renders images from model files. No other package imports torch, transformers or diffusers."""
