"""Marks in pictures: embedding and detection, attacks on them, and the protocol that compares both."""
