"""The earlier stage: from conversations to memory texts."""
