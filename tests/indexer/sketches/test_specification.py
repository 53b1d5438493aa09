import re
from pathlib import Path

from indexer.sketches import SketchSpec, make_sketch

PAGE = Path(__file__).parents[3] / "docs" / "sketches.md"


def test_the_documented_sign_is_the_sign_that_is_used() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    namespace: dict = {}
    exec(code.group(1), namespace)
    assert [namespace["sign"](0, 0, j) for j in range(8)] == [-1, 1, -1, 1, -1, 1, -1, -1]
    for seed, first in ((0, 0), (2**40 + 17, 2**32 - 2)):
        columns = make_sketch(SketchSpec("rademacher", 300, seed=seed), 2**33).columns(first, 4)
        documented = [[namespace["sign"](seed, first + q, j) for j in range(300)] for q in range(4)]
        assert columns.sign().tolist() == documented
