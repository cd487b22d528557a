"""Where bytes lie, and how they are kept there."""
