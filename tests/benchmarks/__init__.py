"""memvec against what people use instead: `python -m tests.benchmarks.compare`; README.md lists the rest."""
