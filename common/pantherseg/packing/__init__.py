"""Turns the model folders of training frameworks into bundles."""
