"""Lightning's side of a run: callbacks, ranks, signals."""
