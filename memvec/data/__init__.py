"""From input files to padded batches: `datamodule` is the way in."""
