"""Share the library with other machines and programs: bundles, projects with a lock file, views, an object store."""
