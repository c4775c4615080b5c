"""Training: a training file leads from data sets through stages to bundles. Needs the extra `train`."""
