"""The library beyond one machine and program: bundles, projects with a lock file, folders for other programs."""
