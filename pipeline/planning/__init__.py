"""What a run will do and take, before it does: configuration -> plan, statistics of a volume, expected time."""
