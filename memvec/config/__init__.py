"""Composing conf/ and checking single values."""
