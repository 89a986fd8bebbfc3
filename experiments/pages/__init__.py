"""What an experiment adds to its run's page; a file bears its experiment's name."""
