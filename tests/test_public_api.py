"""What is public: names, signatures with their defaults, and that importing it is light; types: ``typed_use.py``.

``python tests/test_public_api.py`` writes the signatures anew, for a change that is meant.
"""

import dataclasses
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import hfcompress as hfc

ROOT = Path(__file__).parents[1]
SIGNATURES = Path(__file__).with_name("public_signatures.txt")
PACKAGES = ("deploy", "distill", "prune", "report", "search", "shrink", "storage")
MODULES = ("importance", "losses")
FRESH = """
import sys
import torch, transformers.modeling_utils
before = set(sys.modules)
import hfcompress
heavy = {"transformers.trainer", "torch_pruning", "datasets"} & set(sys.modules)
assert not heavy, heavy
others = {name.partition(".")[0] for name in set(sys.modules) - before} - {"hfcompress"} - sys.stdlib_module_names
assert not others - {"torch", "transformers", "safetensors"}, others
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
assert "hfcompress" in AUTO_QUANTIZER_MAPPING
"""


def test_a_fresh_import_is_light_and_registers_the_loader():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_a_class_or_a_function_of_that_name():
    for name in set(hfc.__all__) - {"__version__"}:
        one = getattr(hfc, name)
        assert inspect.isclass(one) or inspect.isfunction(one), name
        assert one.__name__ == name
        assert one.__module__.startswith("hfcompress.")


def test_every_public_name_is_listed_and_imported_by_a_star():
    assert set(hfc.__all__) <= set(dir(hfc))
    everything = {}
    exec("from hfcompress import *", everything)
    assert set(hfc.__all__) <= set(everything)


def test_the_packages_have_the_public_names_and_no_others():
    names = [name for package in PACKAGES for name in importlib.import_module(f"hfcompress.{package}").__all__]
    assert sorted([*names, "CompressionError", "__version__"]) == sorted(hfc.__all__)


def test_the_reference_documents_what_is_public():
    documented = re.findall(r"^::: hfcompress\.(\S+)", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted({*hfc.__all__, *MODULES} - {"__version__"})


def test_no_module_bears_the_name_of_a_public_function():
    modules = {path.stem for path in (ROOT / "src" / "hfcompress").rglob("*.py")}
    assert not modules & {name for name in hfc.__all__ if inspect.isfunction(getattr(hfc, name))}


def test_the_public_modules_are_attributes():
    assert hfc.losses.label_loss.__module__ == "hfcompress.losses"
    assert hfc.importance.__name__ == "hfcompress.importance"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(hfc, "prune_globally")
    with pytest.raises(ImportError, match="cannot import name 'prune_globally'"):
        exec("from hfcompress import prune_globally")


def test_a_public_name_can_be_replaced(monkeypatch):
    monkeypatch.setattr(hfc, "measure", 3)
    assert hfc.measure == 3
    monkeypatch.undo()
    assert inspect.isfunction(hfc.measure)


def test_the_loader_is_registered_once():
    assert "hfcompress" in transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING


# Signatures


def shown(name, function):
    """A function with its parameters and defaults, without types."""
    signature = inspect.signature(function)
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    return f"{name}{inspect.Signature(plain)}"


def of_class(name, one):
    """The lines of a class: its fields or constructor, and the methods that are its own."""
    ours = [base for base in one.__mro__ if base.__module__.startswith("hfcompress")]
    others = {attribute for base in one.__mro__ if base not in ours for attribute in dir(base)}
    if dataclasses.is_dataclass(one):
        annotated = {field for base in ours for field in vars(base).get("__annotations__", {})}
        fields = [field for field in dataclasses.fields(one) if field.name in annotated]
        for field in fields:
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            yield f"{name}.{field.name}{default}"
    elif "__init__" in vars(one):
        yield shown(name, one.__init__)
    for attribute in sorted({key for base in ours for key in vars(base) if not key.startswith("_")} - others):
        value = inspect.getattr_static(one, attribute)
        if inspect.isfunction(value):
            yield shown(f"{name}.{attribute}", value)
        elif isinstance(value, property):
            yield f"{name}.{attribute}: property"


def signatures():
    lines = []
    for name in sorted(set(hfc.__all__) - {"__version__"}):
        one = getattr(hfc, name)
        lines += list(of_class(name, one)) if inspect.isclass(one) else [shown(name, one)]
    for module in MODULES:
        for name, one in sorted(vars(getattr(hfc, module)).items()):
            if inspect.isfunction(one) and not name.startswith("_") and one.__module__.endswith(f".{module}"):
                lines.append(shown(f"{module}.{name}", one))
    return lines


def test_signatures_and_defaults_are_as_written_down():
    assert signatures() == SIGNATURES.read_text().splitlines(), "python tests/test_public_api.py"


def test_the_package_run_as_a_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "report", "nowhere/"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("hfcompress", run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "hfcompress report: There is no directory nowhere/.\n"


if __name__ == "__main__":
    SIGNATURES.write_text("\n".join(signatures()) + "\n")
