"""Training: a data set folder and a training recipe give a model folder. Needs the extra `train`."""
