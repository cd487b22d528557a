"""Exact UNet inference over microscopy volumes that are larger than any machine."""

__version__ = "0.1.0"
