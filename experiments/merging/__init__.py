"""What merging experiments share: models that are trained on the spot, and how a merged one answers."""
