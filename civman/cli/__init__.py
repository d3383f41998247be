"""The command line: a thin shell over `civman.library.Library`."""
