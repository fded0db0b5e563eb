"""Tasks: what is done with a network's outputs in training, in measuring and in prediction."""
