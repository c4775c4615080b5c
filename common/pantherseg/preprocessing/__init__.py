"""From a volume to the input of a network, and from its logits to the grid of the volume. Without torch."""
