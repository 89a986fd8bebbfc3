"""Where a prediction comes from: attributions, and Focus, a score that rates them on mosaics."""
