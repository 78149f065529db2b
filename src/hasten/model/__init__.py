"""Models: files to weights, weights to logits."""
