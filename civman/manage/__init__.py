"""What a package manager does with its files: resolve, inspect, import, annotate, verify, remove, update."""
