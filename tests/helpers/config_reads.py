"""Which config keys the source reads, by their full names: `cfg.TEST.NMS.THRESH` or an alias of it.

An alias is a variable (`test = cfg.TEST`), or a parameter `lora: CfgNode` that somewhere receives
a group under its name (`lora=cfg.MODEL.LORA`, `{"lora": cfg.MODEL.LORA}` or `f(lora)`). Words to
the user are no use of a key, so what only a formatted message mentions is not read.
"""

import ast
from collections.abc import Iterable

Path = tuple[str, ...]
# A config as every function, object and argument here calls it.
ROOTS = ("cfg", "_cfg")
# What a method of a group returns stands for the group; `items` and `values` read all of it.
COPIES, WHOLE = ("clone",), ("items", "values")


def config_reads(sources: Iterable[str]) -> tuple[set[str], set[str]]:
    """Find the keys that source code reads.

    Args:
        sources: texts of Python files.

    Returns:
        The dotted names that are read, keys and groups; and the groups that are read as a whole.

    Raises:
        ValueError: two groups are handed on under one name, so that nobody knows which is read.
    """
    trees = [ast.parse(source) for source in sources]
    handed_on: dict[str, set[Path]] = {}
    for _ in range(2):  # the second time, what is handed on is known
        finder = _Finder(handed_on)
        for tree in trees:
            finder.visit(tree)
    return {".".join(path) for path in finder.read}, {".".join(path) for path in finder.whole}


class _Finder(ast.NodeVisitor):
    def __init__(self, handed_on: dict[str, set[Path]]) -> None:
        self.handed_on = handed_on
        self.aliases: dict[str, Path] = {}
        self.read: set[Path] = set()
        self.whole: set[Path] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self.aliases
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        hidden = {argument.arg for argument in arguments}
        self.aliases = {name: path for name, path in outer.items() if name not in hidden}
        for argument in arguments:
            groups = self.handed_on.get(argument.arg, set())
            if groups and "CfgNode" in ast.unparse(argument.annotation or ast.Name("")):
                if len(groups) > 1:
                    raise ValueError(f"{argument.arg} receives several groups: {sorted(groups)}.")
                (self.aliases[argument.arg],) = groups
        self.generic_visit(node)
        self.aliases = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            self._hand_on(keyword.arg, keyword.value)
        for argument in node.args:
            if isinstance(argument, ast.Name):
                self._hand_on(argument.id, argument)
        method = node.func
        if isinstance(method, ast.Attribute) and method.attr in WHOLE:
            path = self._path(method.value)
            if path:
                self.whole.add(path)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                self._hand_on(key.value, value)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node)
        if path and isinstance(node.ctx, ast.Load):
            self.read.add(path)
        elif path is None:
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self._assign(one, its)
        elif isinstance(target, ast.Name) and (path := self._path(value)) is not None:
            self.aliases[target.id] = path
        elif isinstance(target, ast.Name):
            self.aliases.pop(target.id, None)

    def _hand_on(self, name: str | None, value: ast.expr) -> None:
        path = self._path(value.body if isinstance(value, ast.IfExp) else value)
        if name is not None and path:
            self.handed_on.setdefault(name, set()).add(path)

    def _path(self, node: ast.expr) -> Path | None:
        """The key or group that an expression stands for, () for the config itself."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, () if node.id in ROOTS else None)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return self._path(node.func.value) if node.func.attr in COPIES else None
        if not isinstance(node, ast.Attribute):
            return None
        if node.attr in ROOTS:
            return ()
        group = self._path(node.value)
        return None if group is None or not node.attr.isupper() else (*group, node.attr)
