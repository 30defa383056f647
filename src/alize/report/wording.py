"""Figures, names and foreign text as the page writes them."""

import math
import re
from collections.abc import Iterable
from itertools import groupby

__all__ = ["chain", "many", "number", "percent", "share", "shortened", "value", "visible"]

_RUNS = 12  # of equal values in a list, before the rest is left to manifest.json


def number(figure: float) -> str:
    """Three significant digits, as short as they can be told apart: 1.93e-5, 0.05, 1,540; ∞ for what is not finite."""
    if math.isnan(figure):
        return "not a number"
    if math.isinf(figure):
        return "∞" if figure > 0 else "-∞"
    if figure == 0 or 1e-3 <= abs(figure) < 1e3:
        return f"{figure:.3g}"
    if 1e3 <= abs(figure) < 1e6:
        return f"{figure:,.0f}"
    mantissa, exponent = f"{figure:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def share(part: float) -> str:
    """0..1 in percent, rounded down: 100 % only where it is all."""
    if not math.isfinite(part):
        return number(part)
    hundredths = math.floor(part * 10_000 + 1e-6)
    return f"{hundredths / 100:.4g} %"


def percent(ratio: float) -> str:
    """A figure as a part of its limit, rounded away from 100 % so that the side it is on can be read: 13 %, 101 %, 310 ×."""
    if math.isnan(ratio):
        return number(ratio)
    if ratio >= 10:
        return f"{number(ratio)} ×"
    if 0 < ratio < 1e-3:
        return "< 0.1 %"
    if 0 < ratio < 1e-2:
        return f"{math.floor(ratio * 1000) / 10} %"
    return f"{math.floor(ratio * 100) if ratio <= 1 else math.ceil(ratio * 100)} %"


def many(count: int, one: str, more: str = "") -> str:
    """1 case, 1,837 positions."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def chain(words: Iterable[str]) -> str:
    """one; one and two; one, two and three"""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def value(setting: object) -> str:
    """A value of the manifest in words; a list with equal neighbours counted: 256 (30 times)."""
    if setting is None:
        return "none"
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    if isinstance(setting, int):
        return str(setting)
    if isinstance(setting, float):
        return number(setting)
    if isinstance(setting, dict):
        return ", ".join(f"{key} = {value(item)}" for key, item in setting.items()) or "none"
    if isinstance(setting, list | tuple):
        runs = [(text, len(list(same))) for text, same in groupby(value(item) for item in setting)]
        words = [f"{text} ({count} times)" if count > 1 else text for text, count in runs[:_RUNS]]
        return ", ".join([*words, "…"][: len(runs)] if len(runs) > _RUNS else words) or "none"
    return str(setting)


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def visible(text: str) -> str:
    """Text that a model or a checkpoint wrote, with what no page may hold (control characters, lone surrogates) shown as �."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
