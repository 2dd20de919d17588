"""A finished run's vectors, searched and judged."""

EXACT_ROWS = 1_000_000  # up to so many, comparing a query with every vector is quick enough
