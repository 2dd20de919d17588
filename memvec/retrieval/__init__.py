"""A finished run's vectors, searched and judged."""
