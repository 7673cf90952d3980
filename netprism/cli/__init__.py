"""The command `netprism`: on top of everything else."""
