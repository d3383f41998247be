"""What differs between operating systems: file access by descriptor, process locks."""
