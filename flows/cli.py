"""`python -m flows.cli`, and scripts of earlier installations: a door to the command, past what `halotile.py` looks at."""

from __future__ import annotations

from flows.commands.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
