"""Marks in pictures and in text: embedding, detection, attacks; and what marks in text do to membership inference."""
