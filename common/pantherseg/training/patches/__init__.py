"""Training on patches by Lightning, with MONAI's losses and transforms: the trainer `lightning`."""
