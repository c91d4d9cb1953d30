"""Every block of Python in the README runs, and the first one is as short as it says."""

from __future__ import annotations

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
