"""What an adapter file changes: its tensors by module, and the weights those modules mean."""
