"""The network: how it is built, loaded and used. One of the two rooms that import torch."""
