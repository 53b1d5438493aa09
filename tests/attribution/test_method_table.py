"""docs/method.md names, for every numbered equation, a function and a test; both must exist."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
EQUATIONS = [4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 54, 62, 86, 87, 88, 89, 92, 93, 94, 95]
#: Measures of the experiments.
EXPERIMENTS = [87, 88]


def rows():
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in TEXT.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]


def test_every_numbered_equation_has_a_row_with_a_function_and_a_test():
    numbered = {int(row[0].strip("()")): row for row in rows() if re.fullmatch(r"\(\d+\)", row[0])}
    assert sorted(numbered) == EQUATIONS
    for number, row in numbered.items():
        _, says, function, test = row
        assert says
        assert ("`experiments." if number in EXPERIMENTS else "`attribution.") in function
        assert "`tests/" in test


def test_every_function_named_exists():
    names = set(re.findall(r"`((?:attribution|experiments)\.[A-Za-z_.]+)`", TEXT))
    assert len(names) > 15
    for name in names:
        module, *attributes = re.match(r"((?:attribution|experiments)\.[a-z_]+)\.(.+)", name).groups()
        found = importlib.import_module(module)
        for attribute in attributes[0].split("."):
            found = getattr(found, attribute)


def test_every_test_named_exists():
    names = set(re.findall(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`", TEXT))
    assert len(names) > 20
    for path, test in names:
        defined = [
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        assert not test or test in defined, f"{path} has no {test}"
