"""From a volume to logits: the only package that runs networks."""
