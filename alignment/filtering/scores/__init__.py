"""Scorers of documents: linear, fastText, embedding, n-gram perplexity and judges, with calibration."""
