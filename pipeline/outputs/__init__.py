"""What is written: an output in whole write units, and the run directory beside it."""
