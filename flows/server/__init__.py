"""Prefect's server: one of our own that ends with its driver, or a configured one; the way to it, and what it is told."""
