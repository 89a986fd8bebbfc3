"""Equal quality over places: measures of it, a referee that sets learning rates by place, and meta-learning of both."""
