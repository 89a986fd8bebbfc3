"""What a model knows: scores of its answers, with intervals."""
