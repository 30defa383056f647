"""A Hugging Face checkpoint folder, read without loading it.

The safetensors headers are parsed and checked when the folder is opened: a truncated shard is found before any tensor is
touched. Tensors are views of memory-mapped files; the kernel brings pages in when they are read and may drop them again.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint, SourceNotFound, UnsupportedModel
from alize.models.adapter import Adapter
from alize.models.multimodal import multimodal_architecture, text_config, text_tensors
from alize.models.prequantised import KEY, dequantised, take_quantization
from alize.models.tensor_info import Packed, TensorInfo

__all__ = ["DTYPES", "Checkpoint", "TensorInfo", "Weight", "read_header", "read_tensors"]

DTYPES = {  # safetensors' names; other dtypes never hold the weights of a float model
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
PACKED_DTYPES = {"I32": torch.int32, "F8_E4M3": torch.float8_e4m3fn}  # of quantised weights, dequantised when they are read
ITEM_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2} | {
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors library itself
CHUNK = 1 << 24  # elements looked at together by check_finite, bytes hashed together by sha256
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
COMPANIONS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "generation_config.json")
PATH_KEYS = ("_name_or_path",)  # config keys that hold where a copy came from: not part of its identity


@dataclass(frozen=True)
class Weight:
    """How a model's parameter is made: its sources stacked on a new axis 0, or the one source as it is.

    index: only this element of the source's axis 0.   rows: only these rows (from, to) of the source's second last axis.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    index: int | None = None
    rows: tuple[int, int] | None = None

    def apart(self, name: str) -> dict[str, "Weight"]:
        """The matrices that a stack [E,...] consists of, each under a name of its own; a matrix or vector by itself.

        `model.layers.0.mlp.experts.up_proj` holds `model.layers.0.mlp.experts.{e}.up_proj.weight`.
        """
        if len(self.shape) < 3:
            return {name: self}
        stack, part = name.rsplit(".", 1)
        stacked = len(self.sources) > 1
        return {
            f"{stack}.{e}.{part}.weight": replace(
                self, sources=(self.sources[e],) if stacked else self.sources, shape=self.shape[1:], index=None if stacked else e
            )
            for e in range(self.shape[0])
        }


class Checkpoint:
    """An opened folder: `folder`, `config` (config.json), `tensors` (by name), `companions` (files that travel with it).

    Of a multimodal checkpoint `config` and `tensors` are its text model's, named as in a checkpoint of that model alone, and
    `multimodal` is the architecture that was taken apart; else it is None. Of a quantised one `tensors` are its floats, made when
    they are read, `quantization` its quantization_config (not in `config`), and `stored_tensors` what the files hold.
    `adapter` is what is merged into the tensors when they are read, see `read_adapter.merge_adapter`.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo], *, multimodal: str | None = None
    ) -> None:
        self.folder = folder
        self.multimodal = multimodal
        self.config = config
        self.tensors = tensors
        self.stored_tensors = tensors
        self.quantization: dict[str, Any] | None = None
        self.adapter: Adapter | None = None
        self._packed: Mapping[str, Packed] = {}
        self._maps: dict[Path, np.memmap[Any, np.dtype[np.uint8]]] = {}
        self._identity: str | None = None
        self._opened = {file: _stat(file) for file in sorted({info.file for info in tensors.values()})}

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Reads config.json and every shard's header.

        Raises SourceNotFound (no such folder, no weights), UnsupportedModel (another layout, an unknown multimodal checkpoint,
        a quantised one whose format is not known exactly), CorruptCheckpoint (a shard that is missing or shorter than its
        header says, an index that points nowhere, packed tensors that contradict their quantization_config).
        """
        if not folder.is_dir():
            raise SourceNotFound(f"{folder}: no such folder; give a Hugging Face checkpoint folder or a hub id")
        config = _read_config(folder)
        quantization = take_quantization(config)
        multimodal, tensors = multimodal_architecture(config), read_tensors(folder)
        if multimodal is not None:
            tensors = text_tensors(tensors)
            config = text_config(config, tensors)
        checkpoint = cls(folder, config, tensors, multimodal=multimodal)
        checkpoint.quantization = quantization
        checkpoint.tensors, checkpoint._packed = dequantised(quantization, tensors, checkpoint.view)
        return checkpoint

    @cached_property
    def companions(self) -> list[Path]:
        """Tokenizer, chat template and generation config files, sorted by name."""
        found = {path for pattern in COMPANIONS for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(found)

    def tensor(self, name: str) -> Tensor:
        """The tensor in its stored dtype, memory-mapped and read-only: no byte is read until it is used, none may be written.

        A quantised one is dequantised, one that an adapter changes is merged, into memory of its own. Raises CorruptCheckpoint
        for what its format has no number for, AdapterError for a sum too large for its dtype.
        """
        return self._merged(name, self._base(name))

    def _merged(self, name: str, stored: Tensor, index: int | None = None) -> Tensor:
        merge = self.adapter.merges.get(name) if self.adapter is not None else None
        return stored if merge is None else merge.merged(stored, index)

    def _base(self, name: str) -> Tensor:
        if name in self._packed:
            return self._packed[name].read(self.view)
        info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise UnsupportedModel(f"tensor {name} is {info.dtype}; only {', '.join(DTYPES)} weights can be read")
        return self.view(info)

    def view(self, info: TensorInfo) -> Tensor:
        """A tensor of a safetensors file as it is stored, mapped and read-only."""
        dtype = (DTYPES | PACKED_DTYPES)[info.dtype]
        data = self._bytes(info)
        if info.start % ITEM_SIZES[info.dtype]:  # written without aligning: torch cannot view it in place
            data = data.copy()
        # torch warns that it cannot mark a tensor read-only; a writable map would be counted as memory of ours
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(data).view(dtype).reshape(info.shape)

    def stored(self, weight: Weight) -> list[Tensor]:
        """What a parameter is made of, mapped, in the stored dtype: one tensor, or several to be stacked."""
        return [self._source(weight, name) for name in weight.sources]

    def _source(self, weight: Weight, name: str) -> Tensor:
        part = self._base(name)
        if weight.index is not None:
            part = part[weight.index]
        part = self._merged(name, part, weight.index)
        return part if weight.rows is None else part[..., slice(*weight.rows), :]

    def read(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        """A parameter in memory of its own: the sources converted to `dtype`, stacked when there are several."""
        first = weight.sources[0]
        if len(weight.sources) == 1:
            mapped = first not in self._packed and (self.adapter is None or first not in self.adapter.merges)
            return self._source(weight, first).to(dtype, copy=mapped, memory_format=torch.contiguous_format)
        stack = torch.empty(weight.shape, dtype=dtype)
        for row, name in zip(stack, weight.sources, strict=True):
            row.copy_(self._source(weight, name))  # converts: one source in memory at a time
        return stack

    def check_finite(self, name: str) -> None:
        """Reads the tensor once, a chunk at a time; raises CorruptCheckpoint when it holds NaN or an infinity."""
        flat = self.tensor(name).flatten()
        for start in range(0, flat.numel(), CHUNK):
            low, high = torch.aminmax(flat[start : start + CHUNK])  # NaN propagates; one pass, no temporary
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                where = int((~torch.isfinite(flat[start : start + CHUNK])).nonzero()[0].item()) + start
                raise CorruptCheckpoint(
                    f"{self.tensors[name].file.name}: tensor {name} holds {flat[where].item()} at element {where}; "
                    "the weights are damaged, fetch the checkpoint again"
                )

    def merge(self, adapter: Adapter) -> None:
        """From here on tensors are read merged with `adapter`, whose files are watched like the shards."""
        self.adapter = adapter
        self._opened |= {file: _stat(file) for file in sorted({info.file for info in adapter.tensors.values()})}

    def check_unchanged(self) -> None:
        """Raises CorruptCheckpoint where a shard is no longer the file that was opened: what was read of it is not to be used."""
        for file, before in self._opened.items():
            if _stat(file) != before:
                raise CorruptCheckpoint(
                    f"{file}: changed while it was read; wait until nothing writes to the checkpoint, and build again"
                )

    def sha256(self, *, advance: Callable[[int], object] | None = None) -> str:
        """Identity of config and weights, in hex: the same for any folder name, shard split or order of tensors.

        advance: told the bytes hashed, tensor by tensor. Later calls answer from the first.
        """
        if self._identity is None:
            rows = []
            with ThreadPoolExecutor(max_workers=2) as pool:  # hashlib lets go of the GIL
                names = sorted(self.stored_tensors)
                for name, digest in zip(names, pool.map(self._digest, names), strict=True):
                    info = self.stored_tensors[name]
                    rows.append([name, info.dtype, list(info.shape), digest])
                    if advance is not None:
                        advance(info.size)
            config = {key: value for key, value in self.config.items() if key not in PATH_KEYS}
            if self.quantization is not None:
                config[KEY] = self.quantization
            identity = json.dumps([config, rows], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            self._identity = hashlib.sha256(identity.encode()).hexdigest()
        return self._identity

    def _digest(self, name: str) -> str:
        data = self._bytes(self.stored_tensors[name]).data
        digest = hashlib.sha256()
        for start in range(0, len(data), CHUNK):
            digest.update(data[start : start + CHUNK])
        return digest.hexdigest()

    def _bytes(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if info.size == 0:
            return np.empty(0, dtype=np.uint8)
        if info.file not in self._maps:
            self._maps[info.file] = np.memmap(info.file, dtype=np.uint8, mode="r")
        return np.asarray(self._maps[info.file][info.start : info.start + info.size])


def _stat(file: Path) -> tuple[int, ...] | None:
    """What tells one state of a file from another; None where it is gone."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "params.json").is_file():
            raise UnsupportedModel(
                f"{folder} has Mistral's own layout (params.json, consolidated files); "
                "only the Hugging Face layout is read: fetch config.json and model*.safetensors of the same model"
            )
        raise SourceNotFound(f"{folder} has no config.json; give a Hugging Face checkpoint folder")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptCheckpoint(f"{path}: not readable JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CorruptCheckpoint(f"{path}: holds a JSON {type(content).__name__}, not an object; fetch the file again")
    return content


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a folder's safetensors files, from their headers. Raises what `Checkpoint.open` raises for weights."""
    if (folder / INDEX).is_file():
        return _read_sharded(folder)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    shards = sorted(path.name for path in folder.glob("model*.safetensors"))
    if shards:
        raise CorruptCheckpoint(f"{folder} has {len(shards)} shards ({shards[0]} ...) but no {INDEX}; fetch the index too")
    if list(folder.glob("consolidated*")):
        raise UnsupportedModel(f"{folder} holds Mistral's own consolidated files; fetch the model*.safetensors files instead")
    for pattern, reason in (("*.bin", "pickle files run code when they are read"), ("*.gguf", "its weights are quantised")):
        others = sorted(path.name for path in folder.glob(pattern))
        if others:
            raise UnsupportedModel(f"{folder} holds {others[0]} and no safetensors: {reason}; save it as safetensors")
    raise SourceNotFound(f"{folder} has no {SINGLE} and no {INDEX}; give a folder that holds the weights")


def _read_sharded(folder: Path) -> dict[str, TensorInfo]:
    names = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CorruptCheckpoint(f"{folder / INDEX}: no weight_map of tensor names to files; fetch the file again")
    headers: dict[str, dict[str, TensorInfo]] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file or not (folder / file).is_file():
            example = min(name for name, shard in names.items() if shard == file)
            raise CorruptCheckpoint(f"{folder / file}: missing shard, named by {INDEX} (for {example}); fetch it")
        headers[file] = read_header(folder / file)
    for name, file in names.items():
        if name not in headers[file]:
            raise CorruptCheckpoint(f"{INDEX} says that {file} holds {name}, which it does not; fetch both files again")
    return {name: headers[file][name] for name, file in names.items()}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Parses and checks one safetensors header against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > HEADER_LIMIT or 8 + length > size:
            raise CorruptCheckpoint(f"{path}: {size} bytes cannot hold its header of {length}; truncated, fetch the file again")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path}: not a safetensors header ({error}); fetch the file again") from error
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.start != end:
            raise CorruptCheckpoint(f"{path}: tensor {name} begins at byte {info.start}, not {end}; fetch the file again")
        end += info.size
    if size != end:
        what = "truncated" if size < end else "longer than its header says"
        raise CorruptCheckpoint(f"{path}: {what} ({size} bytes, its header needs {end}); fetch the file again")
    return tensors


def _tensor_info(path: Path, name: str, entry: dict[str, Any], base: int) -> TensorInfo:
    first, last = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if dtype not in ITEM_SIZES:
        raise CorruptCheckpoint(f"{path}: tensor {name} has the unknown dtype {dtype}; give a float checkpoint")
    if first < 0 or last - first != math.prod(shape) * ITEM_SIZES[dtype]:
        raise CorruptCheckpoint(f"{path}: tensor {name}, {dtype} {list(shape)}, cannot fill {last - first} bytes; fetch it again")
    return TensorInfo(shape=shape, dtype=dtype, file=path, start=base + first, size=last - first)
