"""How a volume is cut into tiles, and what they cost."""
