"""What the launcher is made of: the workdir, sweeps, job scripts, a full disk."""
