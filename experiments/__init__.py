"""One file an experiment: its config, its sweep, its run."""
