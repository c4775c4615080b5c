"""Data sets for training: what is published comes in as raw nnU-Net data sets, is checked, split and cropped."""
