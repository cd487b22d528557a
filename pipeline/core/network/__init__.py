"""Networks as values: what each operation reads, when it can compute, how far an output block reaches. Pure."""
