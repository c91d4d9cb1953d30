"""Every block of Python in the README runs, and every guarantee in it names tests that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_a_block_of_the_readme_runs(block: str, tmp_path: Path) -> None:
    done = run(block, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_first_block_prints_what_its_comments_say(tmp_path: Path) -> None:
    shown = re.findall(r"print\(.*#\s(.*)$", BLOCKS[0], flags=re.MULTILINE)
    assert run(BLOCKS[0], tmp_path).stdout.splitlines() == shown


def test_the_first_program_has_at_most_fifteen_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15


def test_the_readme_has_the_blocks_that_this_test_expects() -> None:
    assert len(BLOCKS) >= 4


# --- the table of guarantees -------------------------------------------------------------------------------------

GUARANTEES = README[README.index("### What is guaranteed") :].partition("**Impossible**")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in GUARANTEES.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
PROOFS = dict(re.findall(r"^(\d+)\. `(tests/\S+)`$", GUARANTEES, flags=re.MULTILINE))
HAS_NO_SUCH_THING = re.compile(r"\((?:no|has none)\b")


def references(cell: str) -> list[str]:
    return re.findall(r"\[(\d+)\]", cell)


def test_every_fault_has_a_cell_for_every_database() -> None:
    assert len(ROWS) > 10
    assert {len(row) for row in ROWS} == {5}


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row[0])
def test_a_guarantee_names_its_proofs(row: list[str]) -> None:
    for cell in row[1:]:
        assert HAS_NO_SUCH_THING.match(cell) or references(cell), cell
        assert set(references(cell)) <= set(PROOFS)


def test_no_proof_is_without_a_guarantee() -> None:
    assert set(PROOFS) == {number for row in ROWS for cell in row for number in references(cell)}


@pytest.mark.parametrize("proof", PROOFS.values())
def test_a_proof_is_a_test_that_exists(proof: str) -> None:
    path, _, name = proof.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [function.name for function in functions].count(name) == 1
    assert not [
        each
        for function in functions
        if function.name == name
        for each in function.decorator_list
        if "skip" in ast.dump(each)
    ]
