"""What things are: values and pure rules. No I/O, no third-party import."""
