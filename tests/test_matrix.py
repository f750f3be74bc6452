""".ci/matrix: what it reads of a run of the tests, and the page it writes."""

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def matrix():
    loader = SourceFileLoader("matrix", str(ROOT / ".ci" / "matrix"))
    module = module_from_spec(spec_from_loader("matrix", loader))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


ENDS = {
    "passed": ("== 12 passed in 1.20s ==", (12, 0, 0, 0)),
    "everything": ("3 failed, 2437 passed, 13 skipped, 2 warnings, 1 error in 207.19s (0:03:27)", (2437, 13, 4, 2)),
    "not collected": ("2 errors in 3.10s", (0, 0, 3, 0)),
    "nothing": ("", (0, 0, 1, 0)),
    "a time in the middle": ("took in 3s\n1 passed, 1 warning in 0.05s", (1, 0, 0, 1)),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_pytest_counted_is_read(case, matrix):
    output, expected = ENDS[case]
    found = matrix.counts(output)
    assert tuple(found[kind] for kind in ("passed", "skipped", "failed", "warnings")) == expected


def test_the_reasons_for_skipping_are_summed(matrix):
    lines = (
        "SKIPPED [1] tests/a.py:3: no GTE: 5.20\nSKIPPED [4] tests/b.py:9: no sdpa\nSKIPPED [2] tests/c.py:1: no sdpa\n"
    )
    assert matrix.counts(lines + "1 passed, 7 skipped in 1.0s")["reasons"] == {"no GTE: 5.20": 1, "no sdpa": 6}


def test_the_page_of_versions_is_written_from_the_results(matrix):
    results = json.loads((ROOT / "docs" / "versions.json").read_text())
    assert matrix.page(results) == (ROOT / "docs" / "versions.md").read_text(), ".ci/matrix --page"


def test_no_row_of_the_page_failed(matrix):
    results = json.loads((ROOT / "docs" / "versions.json").read_text())
    assert [name for name in results if results[name].get("failed", 0)] == []


def test_a_row_that_was_not_run_says_so_and_counts_nothing(matrix):
    row = next(line for line in matrix.page({}).splitlines() if line.startswith("| lowest |"))
    assert "not run here" in row
    assert "passed" not in row
