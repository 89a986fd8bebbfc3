"""Which documents enter pretraining, and in which words: rules, duplicates, scores, rewriting under a code."""
