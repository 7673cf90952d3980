"""netprism: shows what a network has learned while it learns it."""

__version__ = "0.1.0"
