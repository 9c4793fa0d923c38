"""Print pip constraints that pin what the package needs, and the kernel under it, to their lower bounds."""

from __future__ import annotations

import re
from pathlib import Path

text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
base, _, extras = text.partition("[project.optional-dependencies]")
found = re.findall(r'"([A-Za-z0-9_.-]+)>=([0-9.]+)[";]', base.partition("dependencies = [")[2])
found += re.findall(r'"(ipykernel|xllamacpp)>=([0-9.]+)"', extras)
for name, bound in dict(found).items():
    print(f"{name}=={bound}")
