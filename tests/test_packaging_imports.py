"""Who may import whom: models < export < optimize, runtimes none of them, errors and artifact the standard library only.

The rules are read off the source, imports inside functions included; `ci/edge-install` proves the same by running without torch.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = {"models": 1, "export": 2, "optimize": 3}
HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "matplotlib", "huggingface_hub", "gguf"}
BACKENDS = {"openvino", "openvino_tokenizers", "onnxruntime", "cuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
EVERYONE = {"alize.errors", "alize.artifact", "alize.nvidia"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path, *, outside_functions: bool = False) -> Iterator[str]:
    """Dotted names of the modules that a file imports, as `alize.models.ops` for `from alize.models import ops` too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in run_at_import(tree) if outside_functions else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those in function bodies and under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_at_import(child)


def package(name: str) -> str:
    return name.partition(".")[0]


def part(name: str) -> str:
    """`alize.models.ops.x` -> `alize.models`"""
    return ".".join(name.split(".")[:2])


def with_parents(name: str) -> list[str]:
    """`alize.models.ops` -> alize, alize.models, alize.models.ops"""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def file_of(module: str) -> Path | None:
    parts = module.split(".")[1:]
    folder = ROOT if parts[:1] and parts[0] in {*STAGES, "runtimes"} else ROOT / "src" / "alize"
    for path in (folder.joinpath(*parts, "__init__.py"), folder.joinpath(*parts).with_suffix(".py")):
        if path.is_file():
            return path
    return None


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("models", "export", "optimize"), ids=label)
def test_a_stage_sees_only_the_stages_before_it(path: Path) -> None:
    rank = STAGES[path.relative_to(ROOT).parts[0]]
    allowed = EVERYONE | {"alize.__version__"} | {f"alize.{stage}" for stage, other in STAGES.items() if other <= rank}
    assert {part(name) for name in imported(path) if package(name) == "alize"} <= allowed


@pytest.mark.parametrize("path", sources("runtimes"), ids=label)
def test_runtimes_see_no_other_stage(path: Path) -> None:
    allowed = EVERYONE | {"alize.__version__", "alize.runtimes"}
    names = set(imported(path))
    assert {part(name) for name in names if package(name) == "alize"} <= allowed
    assert {package(name) for name in names} & HEAVY == set()


@pytest.mark.parametrize(
    "path", [ROOT / "src/alize/errors.py", ROOT / "src/alize/nvidia.py", *sources("src/alize/artifact")], ids=label
)
def test_errors_and_artifact_use_the_standard_library_only(path: Path) -> None:
    names = set(imported(path))
    assert {package(name) for name in names} - set(sys.stdlib_module_names) <= {"alize"}
    assert {part(name) for name in names if package(name) == "alize"} <= EVERYONE | {"alize.__version__"}


@pytest.mark.parametrize("path", sources("src", "models", "export", "optimize", "runtimes"), ids=label)
def test_backends_are_imported_inside_functions(path: Path) -> None:
    assert {package(name) for name in imported(path, outside_functions=True)} & BACKENDS == set()


@pytest.mark.parametrize("module", ["alize", "alize.cli"])
def test_the_face_needs_the_standard_library_only(module: str) -> None:
    """`alize --help` answers in under 0.3 s only while this holds (ci/wheel takes the time)."""
    waiting, seen = {module}, set[str]()
    while waiting:
        seen.add(name := waiting.pop())
        path = file_of(name)
        if path is None:  # not a module: a name imported from one
            continue
        names = set(imported(path, outside_functions=True))
        assert {package(name) for name in names} - set(sys.stdlib_module_names) <= {"alize"}, name
        waiting |= {parent for name in names if package(name) == "alize" for parent in with_parents(name)} - seen


def test_the_rules_see_through_functions_and_from_imports(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("from alize import models\ndef f():\n    import torch.nn\n", encoding="utf-8")
    assert set(imported(path)) == {"alize.models", "torch.nn"}
    assert set(imported(path, outside_functions=True)) == {"alize.models"}
