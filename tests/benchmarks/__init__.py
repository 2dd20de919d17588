"""memvec against what people use instead: `python -m tests.benchmarks.compare`.

The same texts, model, dtype and threads for all; what is in this folder:

    compare.py      entry: options in, table, JSON and chart out; every repeat runs every contestant once
    task.py         what all contestants are given, and the tokens it takes at least
    contestants.py  one function a contestant
    openvino.py     the one that needs a model converted
    turn.py         what a contestant returns, its clock, and how it finds its best setting
    shapes.py       models of published shapes with random weights, for devices that a small model cannot fill
    limit.py        the machine's own limit: its best rate of matrix products on the model's own shapes
    worker.py       a process of its own for each, so that memory, threads and global settings are its own too
    report.py       medians, ratios, the table, the chart
    ranks.py        another entry: several ranks against one
"""
