"""Writes sampling.json: docs/sampling.md as a program of its own, in plain Python, so that two implementations must agree.

python tests/vectors/make_sampling.py
"""

import json
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WORD = 0xFFFFFFFF
_KNOWN = [  # Random123, kat_vectors
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([_WORD] * 4, [_WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def philox(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & _WORD, (left >> 32) ^ c3 ^ k1, left & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return [c0, c1, c2, c3]


def numerator(seed: int, row: int, position: int) -> int:
    """u * 2^53"""
    words = philox([row & _WORD, row >> 32, position & _WORD, position >> 32], [seed & _WORD, seed >> 32])
    return (words[0] | words[1] << 32) >> 11


def e(x: float) -> float:
    if x < -708.0:
        return 0.0
    n = math.floor(x * float.fromhex("0x1.71547652b82fep+0") + 0.5)
    r = (x - n * float.fromhex("0x1.62e42feep-1")) - n * float.fromhex("0x1.a39ef35793c76p-33")
    t = 1.0 / math.factorial(13)
    for d in range(12, -1, -1):
        t = t * r + 1.0 / math.factorial(d)
    return math.ldexp(t, n)


def token(logits: list[float], row: int, position: int, options: dict[str, Any]) -> int:
    order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    temperature = options.get("temperature", 0.0)
    if temperature == 0:
        return order[0]
    if options.get("top_k", 0):
        order = order[: options["top_k"]]
    w = [e((logits[v] - logits[order[0]]) / temperature) for v in order]
    s = [w[0]]
    for weight in w[1:]:
        s.append(s[-1] + weight)
    n = len(s)
    if options.get("top_p", 1.0) < 1:
        limit = options["top_p"] * s[-1]
        n = next((i for i in range(1, n) if not s[i - 1] < limit), n)
    if options.get("min_p", 0.0) > 0:
        n = next((i for i in range(n) if w[i] < options["min_p"]), n)
    u = numerator(int(options.get("seed", "0x0"), 16), row, position) * 2.0**-53
    return order[next(i for i in range(n) if s[i] > u * s[n - 1])]


def float32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def all_logits() -> dict[str, list[float]]:
    chance = random.Random(1)
    return {
        "ordinary": [float32(chance.gauss(0, 3)) for _ in range(64)],
        "wide": [float32(chance.gauss(0, 4)) for _ in range(3000)],
        "ties": [chance.choice([-1.0, 0.0, -0.0, 1.0, 1.5]) for _ in range(40)],
        "all equal": [0.25] * 10,
        "masked": [float("-inf") if v % 3 else float32(chance.gauss(0, 1)) for v in range(30)],
        "extreme": [3e38, -3e38, float32(2.9e38), 1e-45, 0.0, -1e-45],
        "single": [-2.5],
    }


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "seed": "0x7"},
    {"temperature": 1e-30},
    {"temperature": 1e300},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5, "seed": "0xffffffffffffffff"},
    {"temperature": 1.0, "top_k": 100000},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.5, "top_p": 0.95, "seed": "0x123456789"},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": "0x2a"},
    {"temperature": 2.0, "top_k": 7, "top_p": 0.8, "min_p": 0.2, "seed": "0xdeadbeef00000001"},
]


def borderline() -> Iterator[tuple[str, list[float], dict[str, Any]]]:
    """Pairs of logits where the last bit of E decides whether the second stays, and the usual exp rounds the other way."""
    for k in (27, 41, 105, 22, 42, 44):
        above = k in (27, 41, 105)
        min_p = e(-k / 128) if above else math.nextafter(e(-k / 128), 1.0)
        yield f"0 and -{k}/128", [0.0, -k / 128], {"temperature": 1.0, "min_p": min_p}


def make() -> dict[str, Any]:
    logits = all_logits()
    places = [(0, position) for position in range(10)] + [(3, 5), (1, 2**33 + 1), (0, 2**32 - 1)]
    samples = [
        {"logits": name, "options": options, "tokens": [token(values, row, position, options) for row, position in places]}
        for name, values in logits.items()
        for options in OPTIONS
    ]
    for name, values, options in borderline():
        logits[name] = values
        tokens = [token(values, row, position, options) for row, position in places]
        samples.append({"logits": name, "options": options, "tokens": tokens})
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (2**64 - 1, 2**40, 2**50), (2**63 + 5, 7, 4096)]
    arguments = [0.0, -1e-300, -0.1, -0.3465735902799726, -0.3465735902799727, -1.0, -2.5, -17.3, -200.0, -708.0, -708.1]
    return {
        "philox": [{"counter": _hex(counter), "key": _hex(key), "words": _hex(words)} for counter, key, words in _KNOWN],
        "uniform": [{"seed": hex(a), "row": b, "position": c, "numerator": numerator(a, b, c)} for a, b, c in seeds],
        "exp": [{"x": x.hex(), "e": e(x).hex()} for x in arguments],
        "logits": {name: [x if math.isfinite(x) else "-inf" for x in values] for name, values in logits.items()},
        "places": [{"row": row, "position": position} for row, position in places],
        "sample": samples,
    }


def _hex(words: list[int]) -> list[str]:
    return [f"{word:08x}" for word in words]


if __name__ == "__main__":
    for counter, key, words in _KNOWN:
        assert philox(counter, key) == words
    body = ",\n".join(f"{json.dumps(part)}: {json.dumps(value)}" for part, value in make().items())
    Path(__file__).with_name("sampling.json").write_text(f"{{\n{body}\n}}\n")
