"""The package as `import alize` shows it."""

import importlib.util
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


def test_no_function_shares_its_name_with_a_module() -> None:
    """The import system would bind the name to whichever module was imported last, `from alize.build import ...` for one."""
    assert [name for name in alize.__all__ if name != "errors" and importlib.util.find_spec(f"alize.{name}")] == []


@pytest.mark.parametrize("statement", ["import alize", "import alize.cli", "import alize, alize.errors; alize.errors"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    loaded = json.loads(in_a_fresh_process(f"{statement}\nimport sys, json; print(json.dumps(list(sys.modules)))"))
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["build"], ["inspect", "/nowhere"]])
def test_the_command_line_loads_nothing_heavy(words: list[str]) -> None:
    code = "import sys, json\nfrom alize.cli import main\nmain(sys.argv[1:])\nprint('\\n' + json.dumps(list(sys.modules)))"
    loaded = json.loads(in_a_fresh_process(code, *words).splitlines()[-1])
    assert not [name for name in HEAVY if name in loaded]
