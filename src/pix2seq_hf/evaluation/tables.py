"""How a table of classes is laid out for people."""

from collections.abc import Mapping

# The columns that are shown, of those that a table has.
COLUMNS = {
    "num_objects": "objects", "num_results": "results", "AP": "AP", "AP_50": "AP 50", "AP_75": "AP 75",
    "AP_small": "small", "AP_medium": "medium", "AP_large": "large", "AR": "AR",
}  # fmt: skip
COUNTS = ("num_objects", "num_results")
WIDEST_NAME = 32


def format_class_table(table: Mapping[str, Mapping[str, float]]) -> str:
    r"""Lay out what `per_class` returns, in per cent, the best class first; `-` where there is no such object.

    Args:
        table (`Mapping[str, Mapping[str, float]]`): Numbers by class.
    Returns:
        `str`: Lines without an end of line at the end; classes that nobody annotated or found are left out."""
    rows = [(name, row) for name, row in table.items() if row["num_objects"] or row["num_results"]]
    rows.sort(key=lambda item: -item[1]["AP"])
    columns = [name for name in COLUMNS if not rows or name in rows[0][1]]
    width = max([len("class"), *(min(len(name), WIDEST_NAME) for name, _ in rows)])
    lines = [f"{'class':<{width}}" + "".join(f"{COLUMNS[name]:>9}" for name in columns)]
    for name, row in rows:
        shown = name if len(name) <= WIDEST_NAME else f"{name[: WIDEST_NAME - 3]}..."
        lines.append(f"{shown:<{width}}" + "".join(f"{_cell(column, row[column]):>9}" for column in columns))
    return "\n".join(lines)


def _cell(column: str, value: float) -> str:
    if column in COUNTS:
        return str(int(value))
    return "-" if value < 0 else f"{100 * value:.1f}"
