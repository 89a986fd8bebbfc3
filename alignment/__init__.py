"""Alignment research in JAX: one room a topic, arrays in, arrays out."""
