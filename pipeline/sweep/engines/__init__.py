"""Where the jobs of a sweep run: on this machine, in a cluster of Ray, under Slurm. One file an engine."""
