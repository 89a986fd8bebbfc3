"""Rewriting under a code of conduct, and the gates a rewriting must pass."""
