"""What a plan lacks, in one table: weights, the metrics that wait for them, size, licence, and the command; and in
words, where files that lie there are not those of the manifest."""

from collections.abc import Iterable, Mapping

from rich.table import Table

from metrics.weights.folder import Weights
from metrics.weights.pinned import ManifestWeights


def missing_table(wanted: Mapping[str, Iterable[Weights]]) -> Table | None:
    """Return a table of the weights that are not here, None where all are.

    wanted: the weights behind each metric, by its id (`metrics.loaded.Scorer.weights`)
    """
    waiting: dict[Weights, list[str]] = {}
    for metric, several in wanted.items():
        for weights in several:
            if weights.missing():
                waiting.setdefault(weights, []).append(metric)
    if not waiting:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("missing", "wanted by", "size", "licence", "what to do"):
        table.add_column(column, overflow="fold")
    for weights, metrics in waiting.items():
        if isinstance(weights, ManifestWeights):
            entry = weights.entry
            told = what_to_do(weights).removeprefix("run: ")
            table.add_row(entry.title, ", ".join(metrics), entry.size, entry.licence, told)
        else:
            table.add_row(str(weights.missing()), ", ".join(metrics), "", "", weights.mend)
    return table


def what_to_do(weights: Weights) -> str:
    """Return what brings weights that are not here; of published ones that are here and refused, why they are."""
    if isinstance(weights, ManifestWeights) and not weights.absent():
        return weights.missing() or ""
    return weights.mend
