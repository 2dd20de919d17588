"""The jobs of a sweep, and their table."""
