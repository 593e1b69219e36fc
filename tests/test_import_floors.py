"""Imports go down only: every module of the package stands on a floor."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path("rose_d2")
FLOORS = {
    "config": 0,
    "config_inference": 0,
    "structures": 1,
    "prompts": 1,
    "layers": 1,
    "data": 2,
    "modeling": 2,
    "evaluation": 3,
    "refinement": 3,
    "engine": 4,
    "visualization": 4,
    "results_page": 4,
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(module: str) -> str:
    """rose_d2.layers.nms -> layers."""
    return module.split(".")[1]


def imported_modules(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; name the exact module."
            found.append(node.module or "")
    return [name for name in found if name.split(".")[0] == "rose_d2"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported_modules(path):
        assert module != "rose_d2", f"{path} imports the package; name the exact module."
        other = room_of(module)
        is_same_room = other == room
        is_same_low_floor = FLOORS[other] == FLOORS[room] and FLOORS[room] in (0, 1, 3, 4)
        is_down = FLOORS[other] < FLOORS[room]
        assert is_same_room or is_down or is_same_low_floor, f"{path} imports {module}"


def test_the_check_sees_a_sideways_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("from rose_d2.modeling.criterion import X\nimport rose_d2.data.build\n")
    assert imported_modules(file) == ["rose_d2.modeling.criterion", "rose_d2.data.build"]
    assert FLOORS["data"] == FLOORS["modeling"]
