"""`dipole serve`: an index over HTTP."""
