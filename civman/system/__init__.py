"""What differs between Linux, macOS and Windows. No other package asks which system it runs on."""
