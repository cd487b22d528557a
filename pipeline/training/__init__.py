"""How a network is trained. The other room that imports torch."""
