"""Pieces of an unfinished build: what counts as finished, what is found to be wrong, and what becomes of them."""

import json
from pathlib import Path

import pytest

from alize.artifact.pieces import Pieces, Unfinished
from alize.errors import OutputError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def interrupted(output: Path, **pieces: bytes) -> Path:
    """The folder that Ctrl-C leaves."""
    with pytest.raises(KeyboardInterrupt) as caught, Unfinished(output) as unfinished:
        unfinished.begin({"weights": "int4"})
        for name, content in pieces.items():
            unfinished.pieces.put(name, [content])
        raise KeyboardInterrupt
    assert not pieces or str(unfinished.folder) in caught.value.__notes__[0]
    return unfinished.folder


def test_what_was_put_is_found_again(output: Path) -> None:
    folder = interrupted(output, one=b"first", two=b"second")
    with Unfinished(output) as unfinished:
        said = unfinished.begin({"weights": "int4"})
        assert said == f"going on with 2 finished pieces, 0 MB in {folder}"
        one, three = unfinished.pieces.get("one"), unfinished.pieces.get("three")
        assert one is not None and one.read_bytes() == b"first"
        assert three is None
        assert unfinished.pieces.size == 11
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"wrong", b"firs", b"first and more"])
def test_a_piece_that_is_not_what_was_written_is_none(content: bytes, output: Path) -> None:
    folder = interrupted(output, one=b"first", two=b"second")
    (folder / "pieces" / "one").write_bytes(content)
    pieces = Pieces(folder)
    assert pieces.get("one") is None
    assert pieces.get("two") is not None
    pieces.put("one", [b"fir", b"st"])
    again = Pieces(folder).get("one")
    assert again is not None and again.read_bytes() == b"first"


def test_a_torn_ledger_tells_what_came_before(output: Path) -> None:
    folder = interrupted(output, one=b"first", two=b"second")
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20] + b"\xff")
    pieces = Pieces(folder)
    assert pieces.get("one") is not None
    assert pieces.get("two") is None


def test_the_rest_of_an_interruption_is_swept(output: Path) -> None:
    folder = interrupted(output, one=b"first")
    for rest in (folder / "pieces" / "two.half", folder / "pieces" / "two", folder / "lowering.onnx"):
        rest.touch()
    with pytest.raises(KeyboardInterrupt), Unfinished(output) as unfinished:
        unfinished.begin({"weights": "int4"})
        raise KeyboardInterrupt
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert found == ["key.json", "ledger.jsonl", "pieces", "pieces/one"]


def test_another_key_starts_over(output: Path) -> None:
    folder = interrupted(output, one=b"first")
    with pytest.raises(KeyboardInterrupt), Unfinished(output) as unfinished:
        said = unfinished.begin({"weights": "int8"})
        assert said == f"starting over: the unfinished build in {folder} has another weights"
        assert unfinished.pieces.get("one") is None
        unfinished.pieces.put("other", [b"8 bits"])
        raise KeyboardInterrupt
    assert json.loads((folder / "key.json").read_text()) == {"weights": "int8"}


def test_without_resume_nothing_is_used_and_nothing_stays(output: Path) -> None:
    folder = interrupted(output, one=b"first")
    with pytest.raises(KeyboardInterrupt) as caught, Unfinished(output, resume=False) as unfinished:
        assert unfinished.begin({"weights": "int4"}) is None
        assert unfinished.pieces.get("one") is None
        unfinished.pieces.put("one", [b"again"])
        raise KeyboardInterrupt
    assert not folder.exists()
    assert not hasattr(caught.value, "__notes__")


def test_an_error_removes_what_would_fail_again(output: Path) -> None:
    folder = interrupted(output, one=b"first")
    with pytest.raises(OutputError), Unfinished(output) as unfinished:
        unfinished.begin({"weights": "int4"})
        raise OutputError("disk full")
    assert not folder.exists()


def test_an_interruption_before_the_first_piece_leaves_nothing(output: Path) -> None:
    assert not interrupted(output).exists()


def test_one_build_at_a_time(output: Path) -> None:
    folder = interrupted(output, one=b"first")
    with Unfinished(output) as unfinished:
        unfinished.begin({"weights": "int4"})
        with pytest.raises(OutputError, match="is being built by another process"), Unfinished(output):
            pass
        assert unfinished.pieces.get("one") is not None
    assert not folder.exists()


def test_another_build_is_kept_out_before_the_first_has_a_key(output: Path) -> None:
    with Unfinished(output) as first:
        with pytest.raises(OutputError, match="is being built by another process"), Unfinished(output):
            pass
        first.begin({"weights": "int4"})
        assert first.pieces.put("one", [b"first"]).read_bytes() == b"first"
        first.begin({"weights": "int8"})  # starting over gives up nothing that another could take
        with pytest.raises(OutputError, match="is being built by another process"), Unfinished(output):
            pass


def test_a_torn_line_spoils_no_other(output: Path) -> None:
    folder = interrupted(output, one=b"first")
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"name": "tw')
    Pieces(folder).put("three", [b"third"])
    assert Pieces(folder).get("three") is not None
    assert Pieces(folder).get("one") is not None


def test_what_was_dropped_is_gone_for_good(output: Path) -> None:
    folder = interrupted(output, one=b"first", two=b"second")
    pieces = Pieces(folder)
    pieces.drop("one")
    pieces.drop("never there")
    assert (len(pieces), pieces.get("one"), (folder / "pieces" / "one").exists()) == (1, None, False)
    assert len(Pieces(folder)) == 1
