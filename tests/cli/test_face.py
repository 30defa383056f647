"""The package as `import alize` shows it."""

import json
import subprocess
import sys

import pytest

import alize

HEAVY = ("numpy", "torch", "rich", "tokenizers", "jinja2", "safetensors", "transformers", "onnx", "openvino", "onnxruntime")


def in_a_fresh_process(code: str, *words: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout


def test_exported_names() -> None:
    assert alize.__all__ == ["__version__", "build", "errors", "load"]
    assert dir(alize) == sorted(alize.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bulid'"):
        _ = alize.bulid  # type: ignore[attr-defined]


def test_every_name_is_what_it_says() -> None:
    from alize.errors import AlizeError
    from alize.runtimes.model import load

    assert alize.load is load
    assert alize.errors.AlizeError is AlizeError
    assert alize.__version__ == "0.1.0"


def test_build_stays_the_function_when_its_module_is_imported() -> None:
    """The import system binds alize.build to the module: the face has to win. (A stand-in: the real one takes seconds.)"""
    code = """
import importlib.abc, importlib.machinery, sys, types, alize
stand_in = types.ModuleType("alize.build")
stand_in.build = lambda: "built"
class Finder:
    def find_spec(name, path, target=None):
        if name != "alize.build": return None
        class Loader(importlib.abc.Loader):
            def create_module(self, spec): return stand_in
            def exec_module(self, module): pass
        return importlib.machinery.ModuleSpec(name, Loader())
sys.meta_path.insert(0, Finder)
print(alize.build(), alize.build())
from alize.build import build
print(alize.build is build)
"""
    assert in_a_fresh_process(code) == "built built\nTrue\n"


@pytest.mark.parametrize("statement", ["import alize", "import alize.cli", "import alize, alize.errors; alize.errors"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    loaded = json.loads(in_a_fresh_process(f"{statement}\nimport sys, json; print(json.dumps(list(sys.modules)))"))
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["build"], ["inspect", "/nowhere"]])
def test_the_command_line_loads_nothing_heavy(words: list[str]) -> None:
    code = "import sys, json\nfrom alize.cli import main\nmain(sys.argv[1:])\nprint('\\n' + json.dumps(list(sys.modules)))"
    loaded = json.loads(in_a_fresh_process(code, *words).splitlines()[-1])
    assert not [name for name in HEAVY if name in loaded]
