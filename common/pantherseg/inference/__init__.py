"""From a volume to logits. Only this package runs networks."""
