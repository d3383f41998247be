"""The command line interface, a thin layer over `civman.library.Library`."""
