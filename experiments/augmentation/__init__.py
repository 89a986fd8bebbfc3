"""Augmentation: tasks, arms and batches of saflex.py."""
