"""Shortcuts by concept: how far a classifier leans on one, and training sets that take it away."""
