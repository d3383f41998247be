"""The domain model: values and pure rules, without I/O and without third-party imports."""
