"""torch: networks, what files hold of them, and how they run."""
