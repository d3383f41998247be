"""The engine that turns model files into images. The only code that imports torch, transformers or diffusers."""
