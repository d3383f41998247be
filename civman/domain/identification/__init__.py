"""What a model file is, from its header alone: the rules, and what the file claims in its metadata."""
