"""The table of faults: what each one cost, as measured."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- measured by make faults -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """Times in seconds from the fault on; `outcomes` counts requests."""

    fault: str
    detected: float | None
    healed: float
    outcomes: Mapping[str, int]
    longest: float
    down: float
    said: str
    how: str = ""

    def line(self) -> str:
        lost = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()) if name != "answered")
        cells = [
            self.fault + (f" ({self.how})" if self.how else ""),
            "–" if self.detected is None else f"{self.detected:.1f}",
            f"{self.healed:.1f}",
            str(self.outcomes.get("answered", 0)),
            lost or "none",
            f"{self.longest:.1f}",
            f"{self.down:.1f}",
            re.sub(r"/\S*/services/", "…/services/", self.said).replace("|", "\\|") or "nothing",
        ]
        return f"| {' | '.join(cells)} |"


ROWS: list[Row] = []


def write() -> None:
    """Put the rows of this session into the file."""
    head = [
        "| fault | seen after, s | mended after, s | answered | not answered | longest answer, s | `down`, s | a user reads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    where = f"Measured on {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}."
    text = FILE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([*head, *(row.line() for row in ROWS)])
    FILE.write_text(f"{before}{BEGIN}\n{where}\n\n{table}\n{END}{after}", "utf-8")
