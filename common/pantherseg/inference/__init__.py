"""From a volume to logits: the networks of a case run here."""
