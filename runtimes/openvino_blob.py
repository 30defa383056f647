"""A compiled graph that is kept from one process to the next: opening an artifact again then takes no compiling.

OpenVINO exports what it has compiled, but cannot read all of it again (2026.4): paged attention comes back without its sizes,
and rotary embedding without the width of its tables. Both are mended in the exported text. Where the kernels' matrices lie is
kept as offsets in the artifact's weights file, so that there is no second copy of them.

What is kept is used only for the very same artifact, engine, kernels, processor and options, and only after it has given, in
the process that wrote it, the same bits as what was compiled.
"""

import contextlib
import hashlib
import logging
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alize.artifact.manifest import Manifest, ModelInfo
from alize.artifact.state import DeviceState
from alize.artifact.strict import canonical
from alize.runtimes import kernels
from alize.runtimes.openvino_integer_attention import AttentionTable

__all__ = ["NOT_KEPT", "Blob", "blob_of", "export", "open_blob", "plain", "read_blob", "weights_left", "write_blob"]

NOT_KEPT = b""
"""What is written where a graph cannot be kept, so that no other process tries."""

_log = logging.getLogger("alize.openvino")
_NUMBERS = 6  # of each matrix, see runtimes/cpp/kernels/integer_linear.hpp; the first two are addresses
_MATRICES = re.compile(rb'(?<=matrices=")[^"]*')
_TABLE = re.compile(rb'(?<= step_table=")[^"]*')  # see runtimes/cpp/kernels/integer_attention.hpp
_LARGEST = 1 << 24  # bytes of norms and the like
_PLAIN = [lambda text: text] * 2  # the engine garbles the text otherwise


@dataclass(frozen=True)
class Blob:
    """Where it is kept, a digest of all that it depends on, the kernels, and the file that their matrices lie in."""

    path: Path
    key: str
    extension: Path
    weights: Path


def blob_of(
    folder: Path, manifest: Manifest, fingerprint: dict[str, str], options: Mapping[str, str | int | bool]
) -> Blob | None:
    """None where none is kept: elsewhere than with the kernels and paged attention it would be a copy of the weights."""
    paged = kernels.asked_for(options) and options.get("attention") == "paged"
    if not paged or not manifest.digest or fingerprint["device"] != "cpu":
        return None
    state = DeviceState(manifest.digest, fingerprint)
    chosen, extension = canonical(dict(options)), kernels.library()
    # the name of the kernels' folder has a digest of their sources; this file's bytes decide what is exported
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    facts = [manifest.digest, canonical(fingerprint), chosen, extension.parent.name, own, str(len(os.sched_getaffinity(0)))]
    name = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Blob(state.folder / f"compiled-{name}.blob", key, extension, folder / "openvino_model.bin")


def read_blob(blob: Blob) -> bytes | None:
    """What was kept, None where there is nothing, or something else, or where it is damaged."""
    try:
        whole = blob.path.read_bytes()
    except OSError:
        return None
    return whole[32:] if whole[:32] == _seal(blob, whole[32:]) else None


def write_blob(blob: Blob, content: bytes) -> None:
    """Beside its place, then renamed. Where it cannot be written the next process compiles again."""
    temporary = blob.path.with_name(f".{blob.path.name}.{os.getpid()}")
    try:
        blob.path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(_seal(blob, content) + content)
        temporary.replace(blob.path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _log.debug("%s cannot be written (%s)", blob.path, error)


def _seal(blob: Blob, content: bytes) -> bytes:
    return hashlib.sha256(blob.key.encode() + content).digest()


def open_blob(
    core: Any, blob: Blob, content: bytes, info: ModelInfo, properties: Mapping[str, Any]
) -> tuple[Any, list[Any], AttentionTable | None]:
    """What `export` made as a compiled model; what has to be kept as long as that; and what its attentions read, where the
    kernels compute them. Raises RuntimeError of the engine."""
    core.add_extension(str(blob.extension))
    weights = np.memmap(blob.weights, np.uint8, "r")
    place = weights.ctypes.data
    moved = _MATRICES.sub(lambda found: _moved(found[0], lambda number: number + place), content)
    table = AttentionTable(info) if _TABLE.search(content) else None
    if table is not None:
        moved = _TABLE.sub(b"%d" % table.address, moved)
    return core.import_model(moved, "CPU", {**properties, "CACHE_ENCRYPTION_CALLBACKS": _PLAIN}), [weights], table


def weights_left(model: Any) -> bool:
    """Whether a graph holds more than the kernels left of it elsewhere: what is exported would be a copy of the weights."""
    left: int = sum(node.get_byte_size() for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return left > _LARGEST


def export(compiled: Any, blob: Blob, info: ModelInfo) -> bytes:
    """What was compiled with `plain(properties)`, as `open_blob` reads it. Raises LookupError for a matrix of the kernels that
    does not lie in the weights file, RuntimeError of the engine."""
    whole = compiled.export_model().getvalue()
    begin = whole.rfind(b"<?xml")
    net = ElementTree.fromstring(whole[begin:])
    _merge(net, whole[:begin])
    _mend(net, info)
    mappings = _mappings(blob.weights)
    text = _MATRICES.sub(lambda found: _moved(found[0], lambda number: _offset(mappings, number)), ElementTree.tostring(net))
    return bytes(whole[:begin] + b'<?xml version="1.0"?>\n' + text)


def plain(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Those with which what is compiled can be exported."""
    return {**properties, "CACHE_ENCRYPTION_CALLBACKS": _PLAIN}


def _moved(numbers: bytes, move: Callable[[int], int]) -> bytes:
    """The same numbers of matrices, with other places."""
    found = [int(number) for number in numbers.split(b",")]
    return b", ".join(b"%d" % (move(number) if at % _NUMBERS < 2 else number) for at, number in enumerate(found))


def _mappings(file: Path) -> list[tuple[range, int]]:
    """Addresses at which this process has the file, each range with its first offset in it."""
    found, name = [], str(file.resolve())
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        if path == [name]:
            first, end = (int(number, 16) for number in addresses.split("-"))
            found.append((range(first, end), int(offset, 16)))
    return found


def _offset(mappings: Sequence[tuple[range, int]], address: int) -> int:
    for addresses, offset in mappings:
        if address in addresses:
            return address - addresses.start + offset
    raise LookupError(f"nothing of the weights file lies at {address:#x}")


def _mend(net: ElementTree.Element, info: ModelInfo) -> None:
    """Adds what the engine leaves out of its text, in place, and drops what nothing reads."""
    layers, edges = net.find("layers"), net.find("edges")
    assert layers is not None and edges is not None
    halves: dict[tuple[str, str], str] = {}  # the layer that doubles an output
    sizes = {"k_head_size": info.head_size, "num_k_heads": info.key_value_heads}
    sizes |= {"v_head_size": info.head_size, "num_v_heads": info.key_value_heads}
    for layer in list(layers):
        for notes in layer.findall("rt_info"):
            for note in notes.findall("attribute[@name='fused_names']"):
                notes.remove(note)
        data = layer.find("data")
        if layer.get("type") == "PagedAttentionExtension" and data is not None:
            layer.attrib |= {"type": "SizedPagedAttention", "version": "alize"}
            data.attrib |= {name: str(size) for name, size in sizes.items()}
        elif layer.get("type") == "RoPE":
            _widen(layer, layers, edges, halves)


def _merge(net: ElementTree.Element, before: bytes) -> None:
    """Leaves one of the constants that are the same: every paged attention has some twenty, and most are empty.

    before: all that comes before the text; their values are at its end.
    """
    layers = net.find("layers")
    assert layers is not None
    constants = {layer: layer.find("data") for layer in layers.findall("layer[@type='Const']")}
    places = {
        layer: (int(data.get("offset", 0)), int(data.get("size", 0))) for layer, data in constants.items() if data is not None
    }
    values = before[len(before) - max((offset + size for offset, size in places.values()), default=0) :]
    first: dict[tuple[str | None, str | None, bytes], str] = {}
    same: dict[str, str] = {}
    for layer, data in constants.items():
        if data is None:
            continue
        offset, size = places[layer]
        form = data.get("element_type"), data.get("shape"), values[offset : offset + size]
        number = layer.get("id", "")
        if first.setdefault(form, number) != number:
            same[number] = first[form]
            layers.remove(layer)
    for edge in net.iterfind("edges/edge"):
        edge.set("from-layer", same.get(edge.get("from-layer", ""), edge.get("from-layer", "")))


def _widen(
    layer: ElementTree.Element, layers: ElementTree.Element, edges: ElementTree.Element, halves: dict[tuple[str, str], str]
) -> None:
    """Gives rotary embedding its cosines and sines for both halves of a head, where it shared those of one."""
    data, ports = layer.find("data"), layer.findall("input/port")
    assert data is not None
    width = int(data.get("config.rotary_ndims", 0))
    for port in ports[1:3]:
        if int(port.findall("dim")[-1].text or 0) * 2 != width:
            continue
        edge = edges.find(f"edge[@to-layer='{layer.get('id')}'][@to-port='{port.get('id')}']")
        assert edge is not None
        source = edge.get("from-layer", ""), edge.get("from-port", "")
        if source not in halves:
            halves[source] = str(1 + max(int(one.get("id", 0)) for one in layers))
            _double(source, halves[source], port, layers, edges)
        edge.attrib |= {"from-layer": halves[source], "from-port": "2"}
        port.findall("dim")[-1].text = str(width)


def _double(
    source: tuple[str, str], name: str, port: ElementTree.Element, layers: ElementTree.Element, edges: ElementTree.Element
) -> None:
    """A layer that has an output twice along its last axis."""
    named = {"id": name, "name": f"doubled_{name}", "type": "Concat", "version": "opset1"}
    twice = ElementTree.SubElement(layers, "layer", named)
    ElementTree.SubElement(twice, "data", {"axis": "-1"})
    inputs = ElementTree.SubElement(twice, "input")
    for number in ("0", "1"):
        given = ElementTree.SubElement(inputs, "port", {"id": number, "precision": "FP32"})
        given.extend(copy(dimension) for dimension in port)
        places = {"from-layer": source[0], "from-port": source[1], "to-layer": name, "to-port": number}
        ElementTree.SubElement(edges, "edge", places)
    made = ElementTree.SubElement(ElementTree.SubElement(twice, "output"), "port", {"id": "2", "precision": "FP32"})
    made.extend(copy(dimension) for dimension in port)
    made[-1].text = str(2 * int(made[-1].text or 0))
