"""Text to tokens and back: the tokenizer that travels with an artifact, and text that grows token by token."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alize.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["StopStrings", "StreamDecoder", "Tokenizer"]

_REPLACEMENT = "\ufffd"
"""U+FFFD: what decoders show for bytes that are no UTF-8, or not yet: one for an unfinished character, or one a byte."""


class Tokenizer:
    """tokenizer.json of a folder, with the special tokens and the chat template beside it. Raises ArtifactError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = _read_json(folder / "tokenizer_config.json")
        self.special_tokens: dict[str, str] = _special_tokens(folder, self._config)
        """By the names that chat templates use: bos_token, eos_token, ..."""
        self._tokenizer = _read_tokenizer(folder)
        self._as_transformers()

    @property
    def chat_template(self) -> str | None:
        """The Jinja source: chat_template.jinja, else tokenizer_config.json's (of several the one named default)."""
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template if isinstance(template, str) else None

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's text, as the tokenizer spells it, and its number."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, special_tokens: bool = True) -> NDArray[np.int64]:
        """int64[S]; with special_tokens those that the model expects around a raw prompt (BOS, often) are added."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids, np.int64)

    def decode(self, tokens: Sequence[int] | NDArray[np.int64], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens[S]; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation by the model's chat template. Raises UsageError when there is none or it refuses."""
        template = self.chat_template
        if template is None:
            raise UsageError("this model has no chat template: continue a raw prompt instead (`alize run` without --chat)")
        from alize.runtimes.chat_template import render_chat  # it imports jinja2, which tokens alone do not need

        return render_chat(template, messages, variables=self.special_tokens, add_generation_prompt=add_generation_prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> NDArray[np.int64]:
        """int64[S] of `render_chat`: the template writes the special tokens itself, so none are added."""
        return self.encode(self.render_chat(messages, add_generation_prompt=add_generation_prompt), special_tokens=False)

    def stream(self, *, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> "StreamDecoder":
        """A decoder for one row of tokens as they come."""
        return StreamDecoder(self, stop=stop, skip_special_tokens=skip_special_tokens)

    def _as_transformers(self) -> None:
        # What tokenizer.json pads or cuts is off unless asked for, and the special tokens named in the other files are
        # special. add_bos_token is not looked at: beside a tokenizer.json, transformers 5 lets its post-processor rule.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        named = ((token, self._tokenizer.token_to_id(token)) for token in self.special_tokens.values())
        self._tokenizer.add_special_tokens([token for token, at in named if at is not None and at not in added])


class StreamDecoder:
    """Text that grows token by token: what `push` and `flush` return, joined, is the decoding of all tokens at once.

    A character whose bytes come in several tokens is held back until it is whole; text that may become a stop string is
    held back until it does or cannot. At a stop string the text ends before it: `stopped` is that string, and nothing
    more is returned.

    It decodes the last piece together with the new token and returns what was added (tokenizers' own DecodeStream
    raises when byte tokens turn out to be no UTF-8, and cannot be flushed). The one difference from decoding at once: where
    byte-fallback tokens start as UTF-8 and then fail, the characters that were whole stay what they were.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stop = StopStrings(stop)
        self._tokens: list[int] = []  # the last whole piece, then what came after it
        self._whole = 0  # tokens of that piece
        self._said = ""  # its text
        self._more = ""  # what was returned of the text after it

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.found

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has come; often empty."""
        self._tokens.append(token)
        text = self._decode()
        certain = text.rstrip(_REPLACEMENT)
        fresh = certain[len(self._said + self._more) :]
        self._more += fresh
        if len(certain) == len(text):
            self._advance(text)
        return self._stop.push(fresh)

    def flush(self) -> str:
        """What was held back: the end of the text. An unfinished character is U+FFFD."""
        rest = self._decode()[len(self._said + self._more) :]
        self._tokens, self._whole, self._said, self._more = [], 0, "", ""
        return self._stop.push(rest) + self._stop.flush()

    def _decode(self) -> str:
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        if not text.startswith(self._said):
            # Byte tokens were whole characters until the last ones broke the run: those are decoded by themselves.
            self._tokens, self._whole, self._said = self._tokens[self._whole :], 0, ""
            text = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        return text

    def _advance(self, text: str) -> None:
        # A piece without text (special tokens) cannot stand before the next: a decoder would take the next one's leading
        # space for the start of the text and strip it.
        piece = self._tokenizer.decode(self._tokens[self._whole :], skip_special_tokens=self._skip)
        if piece:
            self._tokens, text = self._tokens[self._whole :], piece
        self._whole, self._said, self._more = len(self._tokens), text, ""


class StopStrings:
    """Passes text on up to the first stop string, however it is cut into pieces. Raises UsageError for an empty one."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(stops):
            raise UsageError("a stop string is empty: give at least one character")
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that no stop string can claim any more."""
        if self.found is not None:
            return ""
        text = self._held + text
        # The one that is complete first, as if the text came letter by letter; of those the longest.
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        size = next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _read_tokenizer(folder: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} has no tokenizer.json: build it from a checkpoint that has one, or pass token ids")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ArtifactError(f"{path} cannot be read ({error}): restore it from the checkpoint and build again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}): restore it from the checkpoint and build again") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} does not hold a JSON object: restore it from the checkpoint and build again")
    return value


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    merged = _read_json(folder / "special_tokens_map.json") | {name: value for name, value in config.items() if value is not None}
    named = {name: value for name, value in merged.items() if name.endswith("_token")}  # add_bos_token too, a bool
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
