"""Run folders, checkpoints and the trained networks in them."""
