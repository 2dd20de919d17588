"""What the page of a sweep shows.

In: a sweep's folder. Out: the contents of its page (`memvec.page.contents`): the table of its jobs, how fast each was,
and, where they have been evaluated, how well each finds memories.
"""

from __future__ import annotations

from pathlib import Path

from memvec.errors import on_one_line
from memvec.page.contents import Json, chart, table
from memvec.retrieval.comparison import BEST_BY, best_line, by_layer, evaluation_rows, shown_evaluation
from memvec.sweep.table import finished_jobs, job_labels, shown_table, sweep_rows


def sweep_page(folder: Path) -> Json:
    """Returns the contents of a sweep's page.

    Raises:
        RunFolderError: There is no finished run in it.
    """
    rows = sweep_rows(folder)
    header, *cells = shown_table(rows)
    speed = chart(
        "Entries a second",
        kind="rows",
        labels=job_labels(rows),
        series={"entries/s": [round(float(row["entries_per_second"] or 0), 1) for row in rows]},
        unit="entries/s",
    )
    charts, tables = [speed], [table("Jobs", header, [(line, ()) for line in cells])]
    evaluated = evaluation_rows(finished_jobs(folder))
    if evaluated:
        header, *cells = shown_evaluation(evaluated)
        tables.append(table("Evaluation", header, [(line, ()) for line in cells], note=f"{best_line(evaluated)}."))
        for measure in ("hit@10", BEST_BY):
            layers, series = by_layer(evaluated, measure)
            labels = [str(layer) for layer in layers]
            charts.append(chart(measure, kind="lines", labels=labels, series=dict(series), axis="layer", unit=measure))
    facts = [("finished jobs", f"{len(rows):,}"), ("folder", on_one_line(str(folder.resolve())))]
    title = on_one_line(folder.resolve().name)
    return {"title": title, "subtitle": "memvec sweep", "facts": facts, "map": None, "charts": charts, "tables": tables}
