"""Augmented samples: upstream policies, and SAFLEX, which gives each sample a weight and a soft label."""
