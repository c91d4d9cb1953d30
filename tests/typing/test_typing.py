"""Public signatures survive mypy strict: what must pass passes, what must not is an error."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
MARK = re.compile(r"  # E: ([a-z-]+)$")
ERROR = re.compile(r"^[^:]+:(\d+)(?::\d+)?: error: .*\[([a-z-]+)\]$")


@pytest.mark.parametrize("file", sorted(HERE.glob("*_cases.py")), ids=lambda file: file.stem)
def test_mypy_reports_errors_where_they_are_marked_and_nowhere_else(file: Path) -> None:
    output, problems, _ = api.run(["--strict", "--follow-imports=silent", "--no-pretty", str(file)])
    assert not problems
    reported = defaultdict(set)
    for error in filter(None, map(ERROR.match, output.splitlines())):
        reported[int(error[1])].add(error[2])
    lines = enumerate(file.read_text().splitlines(), 1)
    marked = {number: mark[1] for number, line in lines if (mark := MARK.search(line))}
    assert marked
    assert reported.keys() == marked.keys(), output
    assert all(code in reported[number] for number, code in marked.items()), output
