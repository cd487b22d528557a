"""Whole datasets: which volumes there are, and which of those that are still being uploaded are complete."""
