"""Volumes in files."""
