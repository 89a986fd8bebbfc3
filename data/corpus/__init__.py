"""Shards of documents: slices of input files, readers, writers, and the executors that work on them."""
