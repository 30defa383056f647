"""An edge install has neither torch nor onnx: nothing in alize.runtimes may ask for them, or for the stages that do."""

import subprocess
import sys
from pathlib import Path

import pytest

import alize.runtimes

FORBIDDEN = (
    "torch", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "matplotlib",
    "alize.models", "alize.export", "alize.optimize", "alize.validate", "alize.building",
)  # fmt: skip
LATE = ("openvino", "onnxruntime")
"""Imported inside the functions that need them: an install of one back-end has not the other."""

MODULES = sorted(path.stem for path in Path(alize.runtimes.__file__ or "").parent.glob("*.py") if path.stem != "__init__")

PROGRAM = """
import importlib, importlib.abc, sys

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == other or name.startswith(other + ".") for other in {forbidden!r}):
            raise ImportError("forbidden: " + name)

sys.meta_path.insert(0, Forbid())
for module in {modules!r}:
    importlib.import_module(module)
{more}
"""


def run(modules: list[str], more: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(forbidden=FORBIDDEN + LATE, modules=modules, more=more)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_runtimes_import_alone() -> None:
    modules = ["alize", "alize.errors", "alize.artifact", "alize.runtimes", *(f"alize.runtimes.{name}" for name in MODULES)]
    done = run(modules)
    assert done.returncode == 0, done.stderr


def test_an_artifact_runs_alone(tmp_path: Path) -> None:
    from tests.runtimes.artifacts import seal

    seal(tmp_path / "artifact")
    more = f"""
from pathlib import Path
from alize.runtimes import GenerationOptions, generate, load
with load(Path({str(tmp_path / "artifact")!r})) as model, model.session() as session:
    print(len(list(generate(session, [[1, 2]], GenerationOptions(max_new_tokens=4)))), len(model.tokenizer.encode("wind")))
"""
    done = run(["alize.runtimes"], more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "4"


@pytest.mark.parametrize("module", ["torch", "alize.models", "openvino"])
def test_the_hook_catches(module: str) -> None:
    done = run([module])
    assert done.returncode != 0
    assert f"forbidden: {module}" in done.stderr


def test_openvino_comes_without_its_converter() -> None:
    """Which is there when it is asked for."""
    program = """
import sys
from alize.runtimes.openvino_runner import available
assert available() is None
import openvino
assert "openvino.tools.ovc" not in sys.modules and not hasattr(openvino, "no_such_thing")
print(openvino.convert_model.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("convert_model\n", 0), done.stderr
