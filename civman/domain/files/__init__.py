"""Model files as bytes: the safetensors header."""
