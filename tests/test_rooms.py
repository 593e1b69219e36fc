"""Who may use whom: the table of rooms in CONTRIBUTING.md, and no circle of files."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path("rose_d2")
# In the order of CONTRIBUTING.md's table; imports inside functions count.
USES = {
    "files": "",
    "command_line": "",
    "dependencies": "",
    "structures": "dependencies",
    "layers": "structures",
    "config": "",
    "prompts": "structures",
    "vocabulary": "files structures",
    "data": "files structures layers prompts vocabulary config",
    "modeling": "dependencies structures layers prompts vocabulary config",
    "evaluation": "files dependencies structures layers prompts vocabulary config data modeling",
    "refinement": "files structures layers prompts vocabulary config data modeling evaluation",
    "checkpoint": "files config modeling",
    "model_zoo": "config modeling checkpoint",
    "visualization": "structures layers",
    "predictor": "files dependencies structures layers prompts vocabulary config data modeling "
    "refinement checkpoint visualization",
    "reports": "files structures layers prompts vocabulary config data evaluation refinement "
    "visualization",
    "engine": "files structures layers prompts vocabulary config data modeling evaluation "
    "refinement checkpoint visualization predictor reports",
    "profiling": "files structures layers prompts vocabulary config data modeling evaluation "
    "refinement checkpoint visualization predictor reports engine",
    "prepare": "files command_line structures data",
    "synthetic": "files structures data prepare",
}
# Only scripts and tests use these.
LEAVES = ("command_line", "profiling", "prepare", "synthetic")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """rose_d2/layers/masks.py -> rose_d2.layers.masks."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported_modules(source: str) -> list[str]:
    """Modules of the package that a file imports anywhere, packages included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import; name the exact module."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else node.module or "" for name in names]
    return [name for name in found if name.split(".")[0] == "rose_d2"]


def forbidden(module: str, source: str) -> list[str]:
    """What a module imports and may not."""
    room = module.split(".")[1]
    allowed = {room, *USES[room].split()}
    return [
        name
        for name in imported_modules(source)
        if name == "rose_d2" or name.split(".")[1] not in allowed
    ]


def files_in_circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves through others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = edges.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    return sorted(module for module in edges if module in reachable(module))


@pytest.mark.parametrize("path", [p for p in FILES if p != PACKAGE / "__init__.py"], ids=str)
def test_imports_follow_the_table(path):
    found = forbidden(module_of(path), path.read_text(encoding="utf-8"))
    assert not found, f"{path} imports {found}"


def test_no_circle_of_files():
    edges = {
        module: {name for name in imported_modules(path.read_text()) if name != module}
        for module, path in MODULES.items()
    }
    assert files_in_circles(edges) == []


def test_the_table_itself_has_no_circle():
    for number, (room, used) in enumerate(USES.items()):
        assert set(used.split()) <= set(list(USES)[:number]), room
        assert not set(used.split()) & set(LEAVES) or room in LEAVES, room
    assert {module.split(".")[1] for module in MODULES if "." in module} == set(USES)


def test_the_checks_see_what_is_hidden():
    hidden = "def later():\n    from rose_d2.data.build import X\n"
    assert forbidden("rose_d2.modeling.inference", hidden) == ["rose_d2.data.build"]
    assert forbidden("rose_d2.data.mixture", hidden) == []
    assert forbidden("rose_d2.data.mixture", "import rose_d2\n") == ["rose_d2"]
    assert files_in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
