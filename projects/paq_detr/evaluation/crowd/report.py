# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The crowd metrics as text."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

COLUMNS = {"AP": "AP", "MR": "MR-2", "JI": "JI", "Recall": "Recall", "JI_threshold": "JI at score >"}


def describe(summary: dict[str, Any], thing: str = "person") -> str:
    """A summary of ``metrics.summarize``: its units, the headline, the JI lines and the split by crowdedness.

    Args:
        thing: the class whose objects the summary calls persons.
    """
    names, headers = (*COLUMNS, "images", "persons"), (*COLUMNS.values(), "images", f"boxes of {thing}")
    lines = [[f"> {line['threshold']}", *(line[n] for n in ("JI", "k", "n", "m"))] for line in summary["thresholds"]]
    groups = [[_range(key), *(g[n] for n in names)] for key, g in summary["by_image_crowdedness"].items()]
    persons = [[_range(key), *g.values()] for key, g in summary["by_person_crowdedness"].items()]
    tables = (
        (headers, [[summary[name] for name in names]]),
        (("score", "JI", "k", "n", "m"), lines),
        (("image crowdedness", *headers), groups),
        ((f"crowdedness of a {thing}", f"boxes of {thing}", "Recall", "duplicates"), persons),
    )
    texts = [tabulate(rows, headers, tablefmt="simple", floatfmt=".4f") for headers, rows in tables if rows]
    units = "AP, MR-2, JI and Recall are fractions of 1; of MR-2, lower is better."
    return "\n\n".join((units, *texts))


def _range(key: str) -> str:
    """What a bin's key stands for: "0.3 to 0.4" for "0.3", "0.6 or more" for "0.6+"."""
    return f"{key[:-1]} or more" if key.endswith("+") else f"{key} to {float(key) + 0.1:.1f}"
