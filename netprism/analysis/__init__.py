"""Trained networks looked at once, without any training."""
