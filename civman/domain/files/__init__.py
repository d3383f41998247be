"""Parsers for the headers of model files (safetensors and GGUF)."""
