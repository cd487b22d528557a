"""Whole datasets: many volumes, each a run, on one pool of workers; versions that readers see whole; inboxes."""
