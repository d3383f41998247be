"""Plans renders: determines everything that affects the pictures, without torch and before any weights are loaded."""
