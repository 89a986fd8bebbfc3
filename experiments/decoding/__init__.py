"""Glue that the doors to the decoder share: which model, and the engine that serves it."""
