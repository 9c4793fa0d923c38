"""Run a notebook in a real kernel, without a browser, and print what each cell printed.

usage: run_notebook.py NOTEBOOK [--save FILE] [--here]

Exit status 0 only if every cell ran and an answer of the model's is among the outputs. Whatever
happens, the services that the notebook started are stopped again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--save", type=Path, help="where to put the executed notebook")
    parser.add_argument("--here", action="store_true", help="keep to the AVOCADO_HOME that is set")
    args = parser.parse_args()
    # A home and a port of its own, so that the demo never touches a service that somebody uses.
    # The cache stays between runs: the model is fetched once.
    if not args.here:
        os.environ["AVOCADO_HOME"] = str(Path(sys.prefix) / "avocado-demo")
    os.environ["AVOCADO_PORT"] = "0"
    for name in ("AVOCADO_NAME", "AVOCADO_MODEL"):
        os.environ.pop(name, None)
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp(prefix="avocado-demo-")

    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(args.notebook, as_version=4)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(args.notebook.parent)}}
    )
    failed = ""
    try:
        client.execute()
    except CellExecutionError as error:
        failed = ANSI.sub("", str(error))
    finally:
        stopped = _stop_services()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            print("\n".join(f">>> {line}" for line in cell.source.splitlines()))
            for output in cell.get("outputs", []):
                print(_text(output))
            print()
    if args.save:
        nbformat.write(notebook, args.save)
    if failed:
        print(f"a cell failed:\n{failed}", file=sys.stderr)
        return 1
    if stopped:
        print(f"left running by the notebook, stopped now: {', '.join(stopped)}", file=sys.stderr)
        return 1
    if not _answered(notebook):
        print("the model did not answer", file=sys.stderr)
        return 1
    print("The model answered, and nothing is left running.")
    return 0


def _text(output: dict) -> str:
    if output["output_type"] == "stream":
        return str(output["text"]).rstrip()
    if output["output_type"] == "error":
        return ANSI.sub("", "\n".join(output["traceback"]))
    return str(output["data"].get("text/plain", "")).rstrip()


def _answered(notebook: dict) -> bool:
    """Whether the first cell that asks has an answer; one that asks for many shows how far it is."""
    for cell in notebook["cells"]:
        if cell["source"].startswith("%%ollama"):
            shown = [o["data"] for o in cell["outputs"] if o["output_type"] == "display_data"]
            return any(
                str(data.get("text/markdown") or "<progress" in data.get("text/html", "")).strip() for data in shown
            )
    return True


def _stop_services() -> list[str]:
    from avocado_magic.runtime import client

    return [state.name for state in client.services() if client.down(state.name)]


if __name__ == "__main__":
    sys.exit(main())
