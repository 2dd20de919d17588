"""A run's folder, and the stages that fill it: `stage` is the way in."""
