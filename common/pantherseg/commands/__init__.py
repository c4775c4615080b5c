"""What the longer commands do; their arguments and help are in `cli`."""
