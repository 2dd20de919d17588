"""From padded batches to vectors: `module` is the way in."""
