"""Everything that differs between Linux, macOS and Windows. No other package checks which system it runs on."""
