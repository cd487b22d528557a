"""Boxes, axes, lengths, and what lies beyond a volume's ends."""
