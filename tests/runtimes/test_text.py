"""Tokenizer, chat template and streamed text, on tokenizers trained here; transformers is the oracle."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from alize.errors import ArtifactError, UsageError
from alize.runtimes.text import StopStrings, StreamDecoder, Tokenizer
from tests.runtimes.tokenizer_folders import byte_fallback, byte_level

TEXTS = [
    "Монгол Улсын нийслэл бол Улаанбаатар хот юм. Сайн байна уу? Өвөл үүл",
    "پاکستان کا دارالحکومت اسلام آباد ہے۔ آپ کیسے ہیں؟",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumb, 🇲🇳 flag, 🏴‍☠️",
    " leading and  double  spaces\n\n\ttabs ",
    "plain",
    "\ufffd",
    "a\ufffd\ufffd\ufffd\ufffdb\ufffd",
    "",
]
KINDS: dict[str, Callable[..., Path]] = {"byte-level": byte_level, "byte-fallback": byte_fallback}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(KINDS[request.param](tmp_path_factory.mktemp("tokenizer")))


def streamed(tokenizer: Tokenizer, tokens: list[int], **options: Any) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*(stream.push(token) for token in tokens), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).tolist()
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_streamed_text_is_the_text_for_any(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).tolist()
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_byte_level_streams_any_tokens(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A model may say bytes that are no UTF-8: the result is still what decoding at once gives."""
    tokenizer = _once(tmp_path_factory, "byte-level")
    tokens = data.draw(st.lists(st.integers(0, 419), max_size=30))
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


def spelled(pieces: list[str], *, whole_run: bool) -> str:
    """The text of byte-fallback tokens by definition. A run of byte tokens that is no UTF-8 is one U+FFFD a byte: all of it
    (whole_run, as decoding at once has it) or what follows the characters at its start that are whole (as a stream must, which
    has said them; a space at the start of a text is never said)."""
    text = ""
    for is_byte, group in itertools.groupby(pieces, lambda piece: piece.startswith("<0x")):
        if not is_byte:
            text += "".join(group).replace("▁", " ")
            continue
        run = bytes(int(piece[3:5], 16) for piece in group)
        ends = [len(run)] if whole_run else range(len(run), -1, -1)
        valid = next((end for end in ends if run[:end].decode(errors="ignore").encode() == run[:end]), 0)
        if not text and run[:valid] == b" " != run:
            valid = 0
        text += run[:valid].decode() + "\ufffd" * (len(run) - valid)
    return text.removeprefix(" ")


@settings(deadline=None, max_examples=500)
@given(data=st.data())
def test_byte_fallback_streams_any_tokens(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tokenizer = _once(tmp_path_factory, "byte-fallback")
    size = tokenizer._tokenizer.get_vocab_size()
    byte = st.integers(size - 256, size - 1)
    beyond_ascii = st.sampled_from([size - 256 + code for code in (0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x99, 0x82, 0xFF)])
    tokens = data.draw(st.lists(st.one_of(st.integers(0, size - 257), byte, beyond_ascii), max_size=30))
    pieces = [tokenizer._tokenizer.id_to_token(token) or "" for token in tokens if token > 2]
    assert tokenizer.decode(tokens) == spelled(pieces, whole_run=True)
    assert "".join(streamed(tokenizer, tokens)) == spelled(pieces, whole_run=False)


_TOKENIZERS: dict[str, Tokenizer] = {}


def _once(factory: pytest.TempPathFactory, kind: str) -> Tokenizer:
    if kind not in _TOKENIZERS:
        _TOKENIZERS[kind] = Tokenizer(KINDS[kind](factory.mktemp("tokenizer")))
    return _TOKENIZERS[kind]


def test_an_unfinished_character_is_held_back_and_flushed(tokenizer: Tokenizer) -> None:
    for text in ("", "wind"):
        tokens = tokenizer.encode(text + "🦉", special_tokens=False).tolist()
        stream = tokenizer.stream()
        assert "".join(stream.push(token) for token in tokens[:-1]).strip() == text
        assert set(stream.flush()) == {"\ufffd"}


def test_characters_come_as_soon_as_they_are_whole(tokenizer: Tokenizer) -> None:
    """Not held until a word, a run of bytes or the text ends."""
    tokens = tokenizer.encode("🦉🦊🦋", special_tokens=False).tolist()
    ends = [len(tokenizer.encode("🦉🦊🦋"[:size], special_tokens=False)) for size in range(4)]
    stream = tokenizer.stream()
    said = ""
    for count, token in enumerate(tokens, 1):
        said += stream.push(token)
        assert said.strip() == "🦉🦊🦋"[: sum(end <= count for end in ends) - 1]


def test_broken_bytes_do_not_stop_the_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_fallback(tmp_path))
    code = {name: tokenizer._tokenizer.token_to_id(name) or 0 for name in ("<0xC3>", "<0xA9>", "<0xFF>")}
    word = tokenizer.encode("the", special_tokens=False).tolist()
    tokens = [code["<0xC3>"], code["<0xA9>"], code["<0xFF>"], *word]
    assert streamed(tokenizer, tokens)[:3] == ["", "é", ""]
    assert "".join(streamed(tokenizer, tokens)) == "é\ufffd the"
    endless = streamed(tokenizer, [code["<0xFF>"]] * 50)
    assert "".join(endless) == "\ufffd" * 50
    assert endless[-1] == "\ufffd" * 50


def test_special_tokens_between_words_take_no_space(tmp_path: Path) -> None:
    """The decoder strips one leading space of what it is given: never that of a word behind a special token."""
    tokenizer = Tokenizer(byte_fallback(tmp_path))
    wind = tokenizer.encode("the wind", special_tokens=False).tolist()
    tokens = [1, *wind, 2, 1, *wind, 2]
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens) == "the wind the wind"
    assert "".join(streamed(tokenizer, tokens, skip_special_tokens=False)) == tokenizer.decode(tokens, skip_special_tokens=False)


def test_stop_strings_end_the_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The wind is steady. User: more", special_tokens=False).tolist()
    stream = tokenizer.stream(stop=["User:", "nowhere"])
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) == "The wind is steady. "
    assert stream.stopped == "User:"
    assert stream.flush() == ""


def test_what_only_began_like_a_stop_string_is_said(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The wind", special_tokens=False).tolist()
    stream = tokenizer.stream(stop=["winding", "d."])
    said = "".join(stream.push(token) for token in tokens)
    assert said == "The "
    assert stream.flush() == "wind"
    assert stream.stopped is None


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_stop_strings_do_not_depend_on_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    def run(pieces: list[str]) -> tuple[str, str | None]:
        matcher = StopStrings(stops)
        return "".join([*(matcher.push(piece) for piece in pieces), matcher.flush()]), matcher.found

    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    said, found = run([text[a:b] for a, b in itertools.pairwise(bounds)])
    assert (said, found) == run(list(text))
    if ends:
        assert found is not None
        assert said + found == text[: min(ends)]
    else:
        assert (said, found) == (text, None)


@pytest.mark.parametrize("stops", [[""], ["a", ""], "abc"])
def test_empty_stop_strings_are_refused(stops: Any) -> None:
    with pytest.raises(UsageError, match="stop string"):
        StopStrings(stops)


TEMPLATE = """{%- if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}{% endif -%}
{{ bos_token }}
{% for message in messages %}
    {% if message['role'] not in ['user', 'assistant', 'system'] %}
        {{ raise_exception('Only user and assistant roles, not ' + message['role']) }}
    {% endif %}
    {% if message['role'] == 'tool' %}{% continue %}{% endif %}
[{{ message['role'] | upper }}] {{ message['content'] }}{{ {'ü': "<b>"} | tojson }}{{ eos_token }}
    {% generation %}x{% endgeneration %}
{% endfor %}
{% if tools is not none %}tools{% endif %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"""
MESSAGES = [
    {"role": "user", "content": "Сайн уу? <s>"},
    {"role": "assistant", "content": "ہیلو 🙂"},
    {"role": "user", "content": "x"},
]


def oracle(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": True},
    ],
    ids=str,
)
def test_encoding_is_transformers(tmp_path: Path, kind: str, config: dict[str, bool]) -> None:
    folder = KINDS[kind](tmp_path, **config)
    ours, theirs = Tokenizer(folder), oracle(folder)
    for text in [*TEXTS, "</s> in <s> text"]:
        for special in (True, False):
            tokens = ours.encode(text, special_tokens=special)
            assert tokens.dtype == np.int64
            assert tokens.tolist() == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                assert ours.decode(tokens, skip_special_tokens=skip) == theirs.decode(tokens, skip_special_tokens=skip)


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    byte_level(tmp_path)
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fields["padding"] = {"strategy": {"Fixed": 90}, "direction": "Right", "pad_to_multiple_of": None}
    fields["padding"] |= {"pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokens = Tokenizer(tmp_path).encode("The steady wind of the day")
    assert len(tokens) > 4
    assert 2 not in tokens
    assert tokens.tolist() == oracle(tmp_path).encode("The steady wind of the day")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["jinja", "config", "named"])
def test_chat_template_is_transformers(tmp_path: Path, place: str, kind: str) -> None:
    templates = {"config": TEMPLATE, "named": [{"name": "default", "template": TEMPLATE}, {"name": "other", "template": "no"}]}
    folder = KINDS[kind](tmp_path, **({} if place == "jinja" else {"chat_template": templates[place]}))
    if place == "jinja":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    ours, theirs = Tokenizer(folder), oracle(folder)
    for prompt in (True, False):
        text = ours.render_chat(MESSAGES, add_generation_prompt=prompt)
        assert text == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        tokens = theirs.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode_chat(MESSAGES, add_generation_prompt=prompt).tolist() == tokens


def test_special_tokens_in_any_spelling(tmp_path: Path) -> None:
    """As objects, and in special_tokens_map.json; a null and a flag are none."""
    folder = byte_level(tmp_path, bos_token={"content": "<s>", "lstrip": False}, pad_token=None, add_prefix_token=True)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "</s>"}, "eos_token": "wrong"}))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    assert Tokenizer(folder).special_tokens == special


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level(tmp_path, chat_template=TEMPLATE))
    with pytest.raises(UsageError, match="Only user and assistant roles, not wizard"):
        tokenizer.render_chat([{"role": "wizard", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% if %}",
        "{{ messages[9].content }}",
    ],
)
def test_a_template_cannot_do_what_it_likes(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer(byte_level(tmp_path, chat_template=template))
    with pytest.raises(UsageError, match="chat template"):
        tokenizer.render_chat(list(MESSAGES))


def test_no_chat_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        Tokenizer(byte_level(tmp_path)).encode_chat(MESSAGES)


def test_strftime_now(tmp_path: Path) -> None:
    text = Tokenizer(byte_level(tmp_path, chat_template="{{ strftime_now('%Y') }}")).render_chat(MESSAGES)
    assert text.isdigit()
    assert len(text) == 4


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no tokenizer.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer.json cannot be read"):
        Tokenizer(tmp_path)
    byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json is not valid JSON"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="does not hold a JSON object"):
        Tokenizer(tmp_path)


def test_a_decoder_is_made_by_hand_too(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    tokens = tokenizer.encode("steady").tolist()
    assert "".join(stream.push(token) for token in tokens) + stream.flush() == "steady"
