"""Input pipelines: files in, dicts of numpy arrays out."""
