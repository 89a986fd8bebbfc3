"""Exact and near duplicates: shingles, MinHash signatures, bands on disk, clusters."""
