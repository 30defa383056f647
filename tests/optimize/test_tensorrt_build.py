"""What a build asks of TensorRT and says of it, with the package played: what it does on a real one is in ci/tensorrt-rtx."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alize.errors import BackendUnavailable, LoweringFailed, OutputError
from alize.nvidia import PACKAGES, Package
from alize.optimize.tensorrt_build import Profile, build_plan

PROFILES = (Profile(4, 1), Profile(4, 512, (1, 512)))


class Config:
    """IBuilderConfig. given: what its timing cache was made of."""

    given = b""

    def __init__(self) -> None:
        self.aimed: list[Any] = []
        self.profiles: list[Any] = []

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.aimed.append(capability)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, known: bytes) -> Any:
        Config.given = known
        return SimpleNamespace(serialize=lambda: known + b"timed ")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self._cache = cache

    def get_timing_cache(self) -> Any:
        return self._cache


def package(**wrong: Any) -> Any:
    """The module. wrong: driver (no Builder), parse (an error), build (an error), plan (what is written, in pieces)."""
    log: list[Any] = []

    class Logger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2)

    def builder(logger: Any) -> Any:
        log.append(logger)
        if "driver" in wrong:
            logger.log(1, "catchCudaError: no device")
            raise TypeError("factory function returned nullptr")
        made = SimpleNamespace(shapes={})
        made.set_shape = lambda name, *shapes: made.shapes.update({name: shapes})
        return SimpleNamespace(
            create_network=lambda flags: network,
            create_builder_config=lambda: configs.append(Config()) or configs[-1],
            create_optimization_profile=lambda: made,
            build_serialized_network_to_stream=build,
        )

    def build(network: Any, config: Any, writer: Any) -> bool:
        if "build" in wrong:
            log[-1].log(1, wrong["build"])
            return False
        return all(writer.write(part) == len(part) for part in wrong.get("plan", [b"plan"]))

    def parser(network: Any, logger: Any) -> Any:
        error = SimpleNamespace(node_name=lambda: "layers.0", node_operator=lambda: "If", desc=lambda: wrong["parse"])
        return SimpleNamespace(
            parse_from_file=lambda path: "parse" not in wrong, num_errors=1 if "parse" in wrong else 0, get_error=lambda _: error
        )

    configs: list[Config] = []
    tensor = SimpleNamespace(name="input_ids", shape=(-1, -1))
    network = SimpleNamespace(num_inputs=1, get_input=lambda index: tensor)
    return SimpleNamespace(
        __version__="1.7",
        ILogger=Logger,
        IStreamWriter=type("IStreamWriter", (), {}),
        Builder=builder,
        OnnxParser=parser,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        ComputeCapability=SimpleNamespace(SM89="SM89"),
        configs=configs,
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """played(**wrong): the package is this one from now on."""
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path / "state"))

    def play(**wrong: Any) -> Any:
        module = package(**wrong)
        monkeypatch.setattr(Package, "load", lambda _: module)
        return module

    return play


def build(plan: Path, target: str = "tensorrt-rtx") -> tuple[str, ...]:
    return build_plan(PACKAGES[target], plan.with_name("graph.onnx"), plan, 89, PROFILES)


def test_one_sm_is_named_and_each_profile_has_its_shapes(played: Any, tmp_path: Path) -> None:
    module = played()
    build(tmp_path / "plan")
    assert (tmp_path / "plan").read_bytes() == b"plan"
    config = module.configs[0]
    assert config.aimed == ["SM89"]
    assert config.profiles[1].shapes == {"input_ids": ([1, 1], [1, 512], [4, 512])}
    build(tmp_path / "plan", "tensorrt")  # for the GPU in the machine
    assert module.configs[1].aimed == []


def test_timings_are_kept_for_the_next_build(played: Any, tmp_path: Path) -> None:
    played()
    for known in (b"", b"timed "):
        build(tmp_path / "plan")
        assert Config.given == known
    assert (tmp_path / "state" / "timing" / "tensorrt-rtx-1.7-sm89.cache").read_bytes() == b"timed timed "


def test_timings_that_cannot_be_kept_are_said(played: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    played()
    (tmp_path / "state").write_text("a file, not a folder")
    build(tmp_path / "plan")
    assert "kernels are timed again at every build; set ALIZE_STATE_DIR" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"driver": True}, BackendUnavailable, r"cannot build here \(catchCudaError.*it needs an NVIDIA driver"),
        ({"parse": "unsupported"}, LoweringFailed, "cannot parse the graph: layers.0: unsupported"),
        ({"build": "no kernel for it"}, LoweringFailed, "cannot build for SM 89: no kernel for it"),
    ],
)
def test_what_fails_is_named(wrong: dict[str, Any], error: type[Exception], said: str, played: Any, tmp_path: Path) -> None:
    played(**wrong)
    with pytest.raises(error, match=said):
        build(tmp_path / "plan")


def test_a_full_disk_is_named(played: Any) -> None:
    played(plan=[b"plan"] * 10_000)
    with pytest.raises(OutputError, match=r"/dev/full cannot be written .*No space left.*: free space there"):
        build(Path("/dev/full"))
