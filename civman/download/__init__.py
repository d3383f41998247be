"""Getting a file: which one, whether it may be had, its bytes over several connections, proven, stored, indexed."""
