"""How a plan's tiles are computed: workers for them, and what becomes of each into the ledger."""
