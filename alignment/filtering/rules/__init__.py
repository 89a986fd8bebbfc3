"""Rules that keep or drop a document by its text, and the packs of languages that they read."""
