"""The shape of the package: who imports whom, what is public, how large things grow, what must not appear."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

LAYERS = ("runtime", "custom_ops", "passes", "exporter", "cli")
CODE = ("runtime", "custom_ops", "passes", "exporter")
ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted(p for layer in CODE for p in (ROOT / layer).rglob("*.py")), ROOT / "__init__.py", ROOT / "cli.py"]

#: Where a file is surely doing two things; most are far below.
FILE_LINES = 500
FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> list[tuple[str, int, bool]]:
    """(dotted module within the package or outside, line, whether at module level) of every import."""
    package = ("deployml", *path.relative_to(ROOT).with_suffix("").parts[:-1])
    tree = tree_of(path)
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module or "", node.lineno, id(node) in top))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            names = [f"{module}.{alias.name}" for alias in node.names] if not node.module else [module]
            found += [(name, node.lineno, id(node) in top) for name in names]
    return found


def listed_in(path: Path) -> list[str] | None:
    """The names in ``__all__``, None where a module has none."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def bound_in(tree: ast.Module) -> set[str]:
    """Every name that a module binds anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_layers_point_one_way():
    wrong = []
    for path in SOURCES:
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        allowed = LAYERS[: LAYERS.index(layer) + 1]
        for module, line, _ in imported(path):
            parts = module.split(".")
            inside = parts[0] == "deployml" and len(parts) > 1 and parts[1] in LAYERS
            if (inside and parts[1] not in allowed) or parts[0] in LAYERS:
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert wrong == []


def test_layers_are_seen_by_the_test_above():
    seen = {module for path in SOURCES for module, _, _ in imported(path)}
    assert {"deployml.runtime.errors", "deployml.passes.rule", "onnx_ir", "torch"} <= seen


def test_torch_and_transformers_stay_where_they_belong():
    wrong = []
    for path in SOURCES:
        for module, line, top in imported(path):
            package = module.split(".")[0]
            heavy = package in ("transformers", "tokenizers", "sentence_transformers")
            if (package == "torch" and not name_of(path).startswith("exporter/")) or (heavy and top):
                wrong.append(f"{name_of(path)}:{line} imports {package}")
    assert wrong == []


def test_public_names_are_listed_exist_and_say_what_they_are():
    wrong = []
    for path in SOURCES:
        if path.name == "__main__.py" or not path.read_text(encoding="utf-8").strip():
            continue
        tree, names = tree_of(path), listed_in(path)
        if names is None or len(names) != len(set(names)):
            wrong.append(f"{name_of(path)} has no __all__, or one with doubles")
            continue
        wrong += [f"{name_of(path)} lists {name}" for name in names if name not in bound_in(tree)]
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names
            if public and ast.get_docstring(node) is None:
                wrong.append(f"{name_of(path)}:{node.lineno} {node.name} has no docstring")
    assert wrong == []


def test_files_and_functions_stay_small():
    large = []
    for path in SOURCES:
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > FILE_LINES:
            large.append(f"{name_of(path)}: {count} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                statements = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - statements[0].lineno + 1 if statements else 0
                if lines > FUNCTION_LINES:
                    large.append(f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines")
    assert large == []


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not run: not a git checkout, there is no list of files to look through")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def test_no_loose_tolerance_anywhere():
    loose = re.compile(r"\b(?:rtol|atol)\s*[=:]\s*([0-9.]+(?:e-?\d+)?)")
    found = [
        f"{name_of(path)}: {match[0]}"
        for path in tracked()
        if path.suffix == ".py"
        for match in loose.finditer(text_of(path))
        if float(match[1]) >= 0.1
    ]
    assert found == []


def test_no_place_of_the_authors_in_tracked_files():
    places = ("/wo" + "rk/", "/opt/" + "dml", "/ro" + "ot/", "/ho" + "me/")
    found = [
        f"{name_of(path)}: {place}"
        for path in tracked()
        for place in places
        if place in text_of(path) and path.suffix in ("", ".py", ".md", ".toml", ".txt", ".json", ".cc", ".h", ".yaml")
    ]
    assert found == []


def test_no_unfinished_marks():
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b(?!\s*\(?#\d)")
    found = [
        f"{name_of(p)}: {m[0]}"
        for p in tracked()
        if p.suffix in (".py", ".cc", ".h", ".cu")
        for m in marks.finditer(text_of(p))
    ]
    assert found == []


def test_the_top_level_is_fixed():
    folders = {p.relative_to(ROOT).parts[0] for p in tracked() if len(p.relative_to(ROOT).parts) > 1}
    assert folders <= {
        "exporter", "passes", "custom_ops", "runtime", "golden_models", "tests", "benchmarks", "docs", ".ci", ".github"
    }  # fmt: skip
