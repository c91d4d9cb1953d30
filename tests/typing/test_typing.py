"""Public signatures survive mypy strict and pyright: what must pass passes, what must not is an error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = re.compile(r"  # E: ([a-z-]+)$")
ERROR = re.compile(r"^[^:]+:(\d+)(?::\d+)?: error: .*\[([a-z-]+)\]$")

cases = pytest.mark.parametrize("file", sorted(HERE.glob("*_cases.py")), ids=lambda file: file.stem)


def marked(file: Path) -> dict[int, str]:
    """The lines on which an error must be reported, and mypy's code for it."""
    lines = enumerate(file.read_text().splitlines(), 1)
    found = {number: mark[1] for number, line in lines if (mark := MARK.search(line))}
    assert found
    return found


@cases
def test_mypy_reports_errors_where_they_are_marked_and_nowhere_else(file: Path) -> None:
    output, problems, _ = api.run(["--strict", "--follow-imports=silent", "--no-pretty", str(file)])
    assert not problems
    reported = defaultdict(set)
    for error in filter(None, map(ERROR.match, output.splitlines())):
        reported[int(error[1])].add(error[2])
    assert reported.keys() == marked(file).keys(), output
    assert all(code in reported[number] for number, code in marked(file).items()), output


@cases
def test_pyright_reports_errors_on_the_same_lines(file: Path, tmp_path: Path) -> None:
    """As a wheel that holds all of it: the one called pyright fetches itself when it is first run."""
    shutil.copy(file, tmp_path)
    settings = {"include": [file.name], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    options = ["--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    reported = {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}
    assert reported == marked(file).keys(), done.stdout
