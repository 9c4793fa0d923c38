"""The shape of the code: who imports whom, what loading costs, and that the page and the repository keep their word."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONGEST

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "avocado_magic"
# Folder or module -> what of ours it may import, besides itself.
MAY: dict[str, set[str]] = {
    "errors": set(),
    "states": set(),
    "model_names": set(),
    "background": set(),
    "back_off": set(),
    "sessions": set(),
    "timestamps": set(),
    "sizes": set(),
    "gpus": set(),
    "version": set(),
    "hosts": set(),
    "settings": set(),
    "config": {"client_env", "timestamps", "settings", "model_names", "errors"},
    "files": set(),
    "process": {"settings", "files"},
    "api_keys": {"files", "errors", "timestamps"},
    "shared_keys": {"api_keys", "errors"},
    "discovery": {"background", "back_off", "config", "errors", "states", "timestamps"},
    "parts": {
        "gpus",
        "sizes",
        "back_off",
        "sessions",
        "settings",
        "model_names",
        "background",
        "states",
        "discovery",
        "api_keys",
        "files",
        "process",
        "config",
        "errors",
    },
    "runtime": {
        "gpus",
        "sizes",
        "hosts",
        "discovery",
        "version",
        "back_off",
        "sessions",
        "timestamps",
        "settings",
        "model_names",
        "background",
        "states",
        "parts",
        "api_keys",
        "files",
        "process",
        "config",
        "errors",
    },
    "asking": {"config", "model_names", "errors", "runtime", "sessions", "settings", "sizes", "background"},
    "client_env": set(),
    "notebook": {
        "asking",
        "client_env",
        "sizes",
        "discovery",
        "timestamps",
        "sessions",
        "settings",
        "states",
        "runtime",
        "api_keys",
        "config",
        "errors",
    },
    "command": {"cli"},
    "cli": {
        "shared_keys",
        "asking",
        "client_env",
        "settings",
        "states",
        "notebook",
        "runtime",
        "api_keys",
        "config",
        "errors",
        "version",
    },
    "__init__": {"asking", "notebook", "runtime", "version"},
    "infer/domain": {"model_names"},
    "infer/service": {"infer/domain", "model_names", "timestamps"},
    "infer/api": {"infer/service", "infer/domain", "model_names"},
    "infer/infrastructure": {
        "back_off",
        "files",
        "gpus",
        "config",
        "model_names",
        "timestamps",
        "infer/domain",
        "discovery",
        "errors",
        "api_keys",
        "shared_keys",
    },
    "infer/settings": {"settings"},
    "infer/engines": set(),
    "infer/cluster": {"model_names", "infer/settings"},
    "infer/ray": {
        "infer/cluster",
        "config",
        "model_names",
        "infer/api",
        "infer/app",
        "infer/backends",
        "infer/engines",
        "infer/infrastructure",
        "infer/settings",
    },
    "infer/watched": set(),
    "infer/backends": {
        "discovery",
        "infer/api",
        "infer/service",
        "infer/domain",
        "infer/infrastructure",
        "infer/settings",
        "config",
    },
    "infer/app": {
        "shared_keys",
        "version",
        "process",
        "infer/backends",
        "infer/watched",
        "infer/api",
        "infer/service",
        "infer/domain",
        "infer/infrastructure",
        "infer/settings",
        "config",
        "errors",
        "__init__",
    },
    "infer/__main__": {"infer/app", "infer/settings"},
    "infer/__init__": set(),
}


def _unit(parts: list[str]) -> str:
    if parts[:1] == ["infer"] and len(parts) > 1:
        return "/".join(parts[:2])
    return "infer/__init__" if parts == ["infer"] else parts[0] if parts else "__init__"


def _imports(path: Path) -> set[str]:
    where = list(path.relative_to(PACKAGE).with_suffix("").parts)
    package = where[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                target = base + (node.module.split(".") if node.module else [])
                names = [[*target, alias.name] for alias in node.names] if not node.module else [target]
                found |= {_unit(name) for name in names}
            elif (node.module or "").split(".")[0] == "avocado_magic":
                found.add(_unit((node.module or "").split(".")[1:]))
        elif isinstance(node, ast.Import):
            found |= {_unit(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "avocado_magic"}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    unit = _unit(list(path.relative_to(PACKAGE).with_suffix("").parts))
    known = {name for name in _imports(path) if name in MAY}
    assert known - {unit} <= MAY[unit], f"{unit} must not import {known - {unit} - MAY[unit]}"


def test_the_domain_is_standard_library_only() -> None:
    for path in (PACKAGE / "infer" / "domain").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] in sys.stdlib_module_names for a in node.names), path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] in sys.stdlib_module_names, path


def test_only_routes_and_dialects_name_a_path() -> None:
    """And the clients of engines, which name those of the engine's API; the gateway's API names none at all."""
    any_path = re.compile(r"/[a-z]")
    path_of_a_route = re.compile(r"/(api|v1|avocado/v1)(/|$)|/(healthz|readyz|metrics|docs|openapi\.json)$")
    may = [
        PACKAGE / "infer" / "api" / "routes.py",
        *((PACKAGE / "infer" / "infrastructure" / name) for name in ("ollama.py", "openai/upstream.py")),
    ]
    for path in (PACKAGE / "infer").rglob("*.py"):
        if path in may or path.parent.name == "dialects":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                named = any_path if path.parent.name == "api" else path_of_a_route
                assert not named.match(node.value), (path, node.value)


def test_the_http_library_imports_nothing_of_ours() -> None:
    for path in (PACKAGE / "infer" / "infrastructure" / "http").glob("*.py"):
        assert _imports(path) <= {"infer/infrastructure"}, path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not isinstance(node, ast.ImportFrom) or node.level <= 1, path


def test_only_front_ends_say_how_a_command_is_typed() -> None:
    """Below them a text names it in braces, which notebook, shell and Python write in their own ways."""
    command = (
        r"%avocado_|%%ollama|avocado (up|down|status|logs|restart|keep|events|doctor|env|run|key|connect|discover)\b"
    )
    for folder, typed in (
        *((folder, re.compile(command)) for folder in ("runtime", "parts", "discovery")),
        ("asking", re.compile(rf"{command}|(?<!\S)--?[a-z]")),  # the flags of whoever asks as well
    ):
        for path in (PACKAGE / folder).rglob("*.py"):
            if path.name == "ray_config.py":  # what it writes is a file for a shell
                continue
            tree = ast.parse(path.read_text("utf-8"))
            documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                    assert not typed.search(node.value), (path, node.value)


@pytest.mark.lowest
def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell; s = InteractiveShell.instance(); before = set(sys.modules);"
        "s.run_line_magic('load_ext', 'avocado_magic'); import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    new = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    ours = [name for name in new if name.startswith("avocado_magic")]
    assert sorted(ours) == [
        "avocado_magic",
        "avocado_magic.errors",
        "avocado_magic.notebook",
        "avocado_magic.notebook.arguments",
        "avocado_magic.notebook.magics",
        "avocado_magic.notebook.prompt_magics",
        "avocado_magic.notebook.tracebacks",
        "avocado_magic.settings",
        "avocado_magic.version",
    ]
    others = (
        {name.split(".")[0] for name in new} - set(sys.stdlib_module_names) - {"avocado_magic", "IPython", "traitlets"}
    )
    assert not others


def test_the_readme_of_the_tests_names_each_of_them() -> None:
    told = (ROOT / "tests" / "README.md").read_text("utf-8")
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert [name for name in there if f"{name}.py" not in told and name not in ("test_faults", "test_scenarios")] == []
    assert set(LONGEST) <= there


def test_the_repository_names_no_registry_and_no_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    hosts = (
        ("py", "pi.org"),
        ("python", "hosted"),
        ("registry.np", "mjs"),
        ("deb.deb", "ian.org"),
        ("/ro", "ot/"),
        ("/wo", "rk/"),
    )
    registry = re.compile("|".join(re.escape("".join(halves)) for halves in hosts) + r"|index-url\s*=")
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".gguf"):
            found = registry.search(path.read_text("utf-8", "replace"))
            assert not found, f"{name}: {found[0] if found else ''}"


def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    for target in set(phony.split()) - {"help"}:
        assert f'@echo "make {target} ' in text, target


def test_examples_are_committed_without_outputs() -> None:
    for file in (ROOT / "examples").glob("*.ipynb"):
        for cell in json.loads(file.read_text("utf-8"))["cells"]:
            assert not cell.get("outputs"), file


def test_no_module_imports_in_a_circle() -> None:
    """Nor behind TYPE_CHECKING."""
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        imports[module] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = [*path.relative_to(PACKAGE).parent.parts]
            base = base[: len(base) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
            for alias in node.names:
                for target in (".".join([*base, alias.name]), ".".join(base), ".".join([*base, "__init__"])):
                    if target in modules:
                        imports[module].add(target)
                        break
    left = {module: targets - {module} for module, targets in imports.items()}
    while ready := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"in or behind a circle: {sorted(left)}"


def test_a_recording_that_is_cited_is_there() -> None:
    recorded = {file.stem for file in (ROOT / "tests" / "recordings").glob("*/*.json")}
    cited = [
        (file.name, name)
        for file in (ROOT / "avocado_magic").rglob("*.py")
        for group in re.findall(r"recordings?:? (\d{3}[^)\n.]*)", file.read_text("utf-8"))
        for name in re.findall(r"\d{3}[\w-]*", group)
    ]
    assert len(cited) > 15
    assert [(file, name) for file, name in cited if name not in recorded] == []
