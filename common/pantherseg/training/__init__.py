"""Training: a data set folder and a recipe in, a model folder out. Needs the extra `train`."""
