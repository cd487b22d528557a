"""What readers see of a volume: its versions, and how they are sent to another one at once."""
