"""Stores and run directories. The only room that imports zarr."""
