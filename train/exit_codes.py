"""What the exit code of a rank, and of `dipole train`, says.

====  ==================  =================================================================================
code  name                meaning
====  ==================  =================================================================================
0                         the run is done, or ended early because its dev metric no longer rose
1                         it failed; `failure.json` holds the first cause
2                         a mistake that a person can mend, in one line
75    `EXIT_STOPPED`      it was asked to stop, and did so with a checkpoint and `stopped.json`: resume it
76    `EXIT_DIVERGED`     loss or gradient are no numbers, or far above their start: resuming as it is ends there
77    `EXIT_STUCK`        the watchdog ended it, since a rank came no further: see `failure.json` and `logs/stacks-*`
78    `EXIT_MINING`       it left its devices to the miner, with a checkpoint and `mining.json`: the command mines
                          and resumes by itself
====  ==================  =================================================================================

torchrun answers 1 for any of them but 0, so whoever starts it reads the files.
"""

EXIT_STOPPED = 75
"""A rank that stopped when asked, with a checkpoint: EX_TEMPFAIL, "try again later"."""
EXIT_DIVERGED = 76
"""A rank whose training diverged."""
EXIT_STUCK = 77
"""A rank that the watchdog ended."""
EXIT_MINING = 78
"""A rank that made room for the miner."""
