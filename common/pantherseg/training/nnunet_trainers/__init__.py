"""The folder that the environment variable nnUNet_extTrainer names, so that nnU-Net's commands find PantherTrainer."""
