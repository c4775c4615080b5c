"""Model folders of training frameworks into bundles. The only package that reads checkpoints."""
