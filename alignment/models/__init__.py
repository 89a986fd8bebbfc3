"""Networks, and nothing about training."""
