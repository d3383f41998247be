"""What an adapter file changes: its tensors grouped by module, and the model weights that these modules change."""
