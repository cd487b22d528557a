"""Networks of other libraries, as graphs."""
