"""Batches of text: pretraining, answers, preference pairs, labels."""
