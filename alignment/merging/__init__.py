"""Several fine-tunes of one network as one: what happens to a tensor, recipes, and checkpoints merged as a stream."""
