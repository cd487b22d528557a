"""Geometry, plan and ledger as values: numpy and the standard library only, and no input or output."""
