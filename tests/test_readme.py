"""The README is true, here and on the package index: its blocks run as pasted, and its links lead somewhere."""

import contextlib
import email
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)|\]:\s+(\S+)|(?:src|href)=[\"']?([^\s\"'>]+)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def links(text):
    """The targets of all links and images, in Markdown and HTML, outside blocks of code."""
    return ["".join(found) for found in LINK.findall(CODE.sub("", text))]


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """The metadata of the wheel, as the build backend makes them."""
    backend = pytest.importorskip("hatchling.build")
    pytest.importorskip("hatch_fancy_pypi_readme")
    folder = tmp_path_factory.mktemp("metadata")
    with contextlib.chdir(ROOT):
        made = backend.prepare_metadata_for_build_wheel(str(folder))
    return email.message_from_string((folder / made / "METADATA").read_text())


def test_the_blocks_of_the_readme_print_the_text_below_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", README.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        if expected:
            assert printed.getvalue().split() == expected.split()


def test_a_link_to_a_file_leads_to_one():
    relative = [one for one in links(README.read_text()) if not one.startswith(("https:", "#", "../../actions/"))]
    assert relative
    assert [one for one in relative if not (ROOT / one.partition("#")[0]).exists()] == []


def test_the_package_index_is_given_absolute_links(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    shown = links(metadata.get_payload())
    assert len(shown) == len(links(README.read_text()))
    assert [one for one in shown if not one.startswith("https://") or "/../" in one] == []


def test_the_package_index_is_given_pictures_as_files(metadata):
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", metadata.get_payload())
    assert [one for one in pictures if "/blob/" in one] == []  # a page about the file


def test_links_are_the_only_difference_on_the_package_index(metadata):
    source = metadata.get_all("Project-URL")[0].partition(", ")[2]
    text = metadata.get_payload()
    version = f"v{metadata['Version']}"
    for absolute, relative in {f"blob/{version}/": "", f"raw/{version}/": "", "": "../../"}.items():
        text = text.replace(f"]({source}/{absolute}", f"]({relative}")
    assert text.strip() == README.read_text().strip()
