"""What the C++ tests compare with: artifacts of the fake back-end, and what Python says and does with them.

    python tests/cpp/make_data.py FOLDER [OPENVINO_ARTIFACT...]

FOLDER/artifacts/*         sealed artifacts, right ones and wrong ones
FOLDER/refusals.json       for each refused load: the options, the status and the message
FOLDER/manifests.json      manifests with one thing wrong, and the message
FOLDER/traces.json         calls of a session, and what each returned (of logits: a hash of their bytes)
FOLDER/chosen.json         device states in which something was tuned, and configurations that cannot run; what load makes of them
FOLDER/openvino.json       the same for real engines, with the greedy token in place of a hash; and text
"""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alize.artifact.state import DeviceState, fingerprint_key
from alize.errors import AlizeError
from alize.runtimes import fake
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import Model, load
from alize.runtimes.session import Session
from tests.cpp.chosen_data import left_out, tuned
from tests.cpp.manifest_data import error_of, manifests, resealed
from tests.runtimes.artifacts import seal
from tests.runtimes.backends import FULL, MAX_POSITIONS, MIXED, UNEQUAL, UNIFORM, VOCABULARY, model_info

CALLS, REAL_CALLS = 60, 24  # of each trace
TEXTS = ("Hello", "", " leading and trailing ", "naïve ہے 🐫\n\tπ", "<s>not a token</s>", "a" * 3000, "The trade winds blow.")


# ---- Refused loads


def spoil(folder: Path, edit: Callable[[Path], object]) -> Path:
    edit(folder)
    return folder


def rewritten(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest and its digest with it, so that what is refused is the edit itself."""
    path = folder / "manifest.json"
    path.write_text(resealed(json.loads(path.read_text()), edit))


SPOILT: dict[str, Callable[[Path], object]] = {
    "changed file": lambda f: (f / "tokenizer.json").write_bytes(b"x" * (f / "tokenizer.json").stat().st_size),
    "longer file": lambda f: (f / "tokenizer.json").open("ab").write(b"x"),
    "missing file": lambda f: (f / "golden.safetensors").unlink(),
    "extra files": lambda f: [(f / name).touch() for name in ("a", "b", "c", "d")],
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "no folder": shutil.rmtree,
    "no UTF-8": lambda f: (f / "manifest.json").write_bytes(b"{\xff}"),
    "changed manifest": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace("FakeFor", "RealFor")
    ),
    "white space": lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text() + "\n"),
    "other schema": lambda f: rewritten(f, lambda m: m.update(schema=99)),
    "old schema": lambda f: rewritten(f, lambda m: m.update(schema=2)),
    "verdict fail": lambda f: rewritten(f, lambda m: m["validation"].update(verdict="fail")),
    "verdict partial": lambda f: rewritten(f, lambda m: m["validation"].update(verdict="partial", left_out=["W+1", "chunks"])),
    "no configuration": lambda f: rewritten(f, lambda m: m.update(configurations=[])),
    "no such device": lambda f: rewritten(f, lambda m: m["target"].update(device="gpu")),
    "chunk over slack": lambda f: rewritten(f, lambda m: m["configurations"][0]["options"].update(chunk=9, slack=3)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "a pin that is no digest": {"expect": "abc"},
    "another pin": {"expect": "sha256:" + "0" * 64},
    "no such configuration": {"configuration": "fast"},
    "unknown device": {"device": "npu'\n"},
}


def refusals(folder: Path) -> Iterator[dict[str, Any]]:
    for name, edit in SPOILT.items():
        place = folder / f"spoilt {name} é"
        seal(place)
        yield refused(name, spoil(place, edit), {})
    for name, options in OPTIONS.items():
        yield refused(name, folder / "uniform", options)
    seal(folder / "wrong", windows=(5, 4))
    yield refused("a failing replay", folder / "wrong", {})
    yield refused("a replay that failed before", folder / "wrong", {})
    seal(folder / "no golden", golden=False)
    yield refused("nothing to replay", folder / "no golden", {})


def refused(name: str, place: Path, options: dict[str, Any]) -> dict[str, Any]:
    try:
        load(place, **options).close()
    except AlizeError as error:
        return {"case": name, "folder": str(place), "options": options, **error_of(error)}
    raise AssertionError(f"{name} was not refused")


def without_kernels(folder: Path) -> Iterator[dict[str, Any]]:
    def asking(*names: str) -> Callable[[dict[str, Any]], object]:
        def edit(fields: dict[str, Any]) -> None:
            for one in fields["configurations"]:
                one["options"] |= {"kernels": "alize"} if one["name"] in names else {"kernels": "engine"}

        return edit

    places = {name: folder / "artifacts" / f"asking in {name}" for name in ("the first", "every one")}
    for place, names in zip(places.values(), (("default",), ("default", "small")), strict=True):
        seal(place)
        rewritten(place, asking(*names))
    return left_out(places, folder / "left out states")


# ---- Sessions


def trace(model: Model, *, seed: int, batch: int, greedy: bool) -> dict[str, Any]:
    """Calls of every kind, sensible and not, on one session."""
    chance = random.Random(seed)
    calls: list[dict[str, Any]] = []
    with model.session(batch) as session:
        for _ in range(REAL_CALLS if greedy else CALLS):
            call = next_call(chance, session, model.info.vocab_size)
            try:
                call |= made(session, call, greedy=greedy)
            except AlizeError as error:
                call |= error_of(error)
            call |= {"positions": session.positions.tolist(), "rewindable": session.rewindable}
            calls.append(call)
    return {"artifact": str(model.folder), "configuration": model.configuration.name, "batch": batch, "calls": calls}


def next_call(chance: random.Random, session: Session, vocabulary: int) -> dict[str, Any]:
    kind = chance.choice(["append"] * 6 + ["rewind"] * 3 + ["reset", "generate"])
    if kind == "rewind":
        return {"call": kind, "n": chance.choice([0, 1, 2, session.rewindable, session.rewindable + 1, -1])}
    if kind == "reset":
        return {"call": kind if chance.random() < 0.5 else "rewind", "n": 1}
    size = chance.choice([1, 1, 1, 2, 5, 17, 40])
    lengths = [chance.randint(1, size) for _ in range(session.batch)]
    lengths[chance.randrange(session.batch)] = size
    if chance.random() < 0.03:
        lengths[0] = chance.choice([0, size + 1])
    tokens = [[chance.randrange(vocabulary) for _ in range(size)] for _ in range(session.batch)]
    if chance.random() < 0.03:
        tokens[-1][0] = chance.choice([-1, vocabulary])
    call: dict[str, Any] = {"call": kind, "tokens": tokens, "lengths": lengths}
    if kind == "generate":
        sampling = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": chance.getrandbits(64)}
        options = {} if chance.random() < 0.5 else sampling
        return call | {"options": options | {"max_new_tokens": 6, "stop_token_ids": [3]}}
    return call | {"keep": chance.choice([0, 1, 1, 1, min(lengths), min(lengths) + 1, -1])}


def made(session: Session, call: dict[str, Any], *, greedy: bool) -> dict[str, Any]:
    if call["call"] == "rewind":
        session.rewind(call["n"])
    elif call["call"] == "reset":
        session.reset()
    elif call["call"] == "generate":
        options = GenerationOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in call["options"].items()})
        options = GenerationOptions(max_new_tokens=6, stop_token_ids=(3,)) if greedy else options
        call["options"] = {**vars(options), "stop_token_ids": [3]}
        generation = generate(session, call["tokens"], options, lengths=call["lengths"])
        rows = [row.tolist() for row in generation]
        return {"rows": rows, "reasons": generation.finish_reasons}
    else:
        logits = session.append(call["tokens"], lengths=call["lengths"], keep=call["keep"])
        if greedy:
            return {"best": logits.argmax(axis=-1).tolist()}
        return {"fingerprint": fingerprint(np.ascontiguousarray(logits, np.float32).tobytes())}
    return {}


def fingerprint(data: bytes) -> str:
    """FNV-1a, 64 bits (Fowler, Noll, Vo): short in any language."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return str(found)


def traces(folder: Path) -> Iterator[dict[str, Any]]:
    for name, windows in (("uniform", UNIFORM), ("unequal", UNEQUAL), ("mixed", MIXED), ("full", FULL)):
        seal(folder / name, windows=windows, model=model_info(windows))
        for_tensorrt(folder / name, windows)
        for configuration in ("default", "small"):
            with load(folder / name, configuration=configuration) as model:
                for batch in (1, 3):
                    yield trace(model, seed=len(name) + batch, batch=batch, greedy=False)


def for_tensorrt(artifact: Path, windows: tuple[int, ...]) -> None:
    """The same artifact with a plan for the stand-in of tests/cpp/tensorrt_stub, whose caches are not a token too large."""
    folder = artifact.with_name(f"{artifact.name} tensorrt")
    shutil.copytree(artifact, folder)
    slack, chunk, batch = 16, 16, 3
    plan = folder / "engine.sm80.plan"
    plan.write_text(" ".join(map(str, (VOCABULARY, MAX_POSITIONS, max(windows) - 1 + slack, batch, chunk, *windows))))
    entry = {"path": plan.name, "size": plan.stat().st_size, "sha256": hashlib.sha256(plan.read_bytes()).hexdigest()}

    def edit(fields: dict[str, Any]) -> None:
        fields["target"].update(backend="tensorrt", device="gpu")
        fields["files"] = sorted([*fields["files"], entry], key=lambda one: one["path"])

    rewritten(folder, edit)


# ---- Real engines: tokens and text


def real(place: Path, copies: Path) -> dict[str, Any]:
    with load(place) as model:
        tokenizer = model.tokenizer
        found: dict[str, Any] = {"traces": [trace(model, seed=batch, batch=batch, greedy=True) for batch in (1, 2)]}
        found |= in_narrow_memory(place, copies, found["traces"]) if model.info.max_positions < 1000 else {"narrow": None}
        found["generation"] = long_text(model)
        found["encode"] = [
            {"text": text, "special": special, "tokens": tokenizer.encode(text, special_tokens=special).tolist()}
            for text in TEXTS
            for special in (True, False)
        ]
        chance = random.Random(5)
        lists = [tokenizer.encode(text).tolist() for text in TEXTS]
        lists += [[chance.randrange(min(259, model.info.vocab_size)) for _ in range(30)] for _ in range(5)]
        found["decode"] = [
            {"tokens": tokens, "skip": skip, "text": tokenizer.decode(tokens, skip_special_tokens=skip)}
            for tokens in lists
            for skip in (True, False)
        ]
        found["streams"] = [streamed(model, tokens, stop) for tokens in lists for stop in ((), ("trade", "and t", "é"))]
        found["chat"] = chats(model)
        return {"artifact": str(place), **found}


def in_narrow_memory(place: Path, copies: Path, traces: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a tiny artifact: a copy that forgets after few tokens, paged and stateful, with weights of integers also by alize's
    kernels; and one whose windows are wrong."""

    def forgetful(fields: dict[str, Any]) -> None:
        options = fields["configurations"][0]["options"] | {"chunk": 16, "slack": 16}
        forms = [{"attention": form, "kernels": whose} for form in ("paged", "stateful") for whose in kernels]
        fields["configurations"] = [{"name": " ".join(form.values()), "options": options | form} for form in forms]

    integers = json.loads((place / "manifest.json").read_text())["target"]["weights"].startswith("int")
    kernels = ("engine", "alize") if integers else ("engine",)
    narrow = shutil.copytree(place, copies / f"{place.name} narrow")
    rewritten(narrow, forgetful)
    for configuration in [f"{form} {whose}" for form in ("paged", "stateful") for whose in kernels]:
        with load(narrow, configuration=configuration) as model:
            traces += [trace(model, seed=10 + batch, batch=batch, greedy=True) for batch in (1, 3)]
    wrong = shutil.copytree(place, copies / f"{place.name} of other windows")
    rewritten(wrong, lambda fields: fields["model"].update(windows=[window + 1 for window in fields["model"]["windows"]]))
    return {"narrow": str(narrow), "refused": refused("other windows", wrong, {})}


def long_text(model: Model) -> dict[str, Any]:
    """A prompt of two windows in chunks and a long answer, greedily: across every edge that there is."""
    window = max(model.info.windows)
    size = min(2 * window + 3 if window else 40, model.info.max_positions // 2)
    prompt = [(7 * i + 11) % model.info.vocab_size for i in range(size)]
    with model.session() as session:
        rows = generate(session, [prompt], GenerationOptions(max_new_tokens=48))
        tokens = [int(row[0]) for row in rows]
        dropped = min(5, session.rewindable)
        session.rewind(dropped)
        again = [int(row[0]) for row in generate(session, [[1]], GenerationOptions(max_new_tokens=8))]
    return {"prompt": prompt, "tokens": tokens, "dropped": dropped, "again": again}


def streamed(model: Model, tokens: list[int], stop: tuple[str, ...]) -> dict[str, Any]:
    stream = model.tokenizer.stream(stop=stop)
    pieces = [stream.push(token) for token in tokens]
    return {"tokens": tokens, "stop": stop, "pieces": [*pieces, stream.flush()], "stopped": stream.stopped}


def chats(model: Model) -> list[dict[str, Any]]:
    said = [{"role": role, "content": f" {role} ہے "} for role in ("system", "user", "assistant", "user", "assistant", "user")]
    found = []
    for messages in (said, said[1:], said[1:2], said[:2], said[1:3], [said[2]], []):
        for prompt in (True, False):
            try:
                text = model.tokenizer.render_chat(messages, add_generation_prompt=prompt) if messages else None
            except AlizeError:
                text = None
            found.append({"messages": messages, "prompt": prompt, "text": text})
    return found


def main(folder: Path, *artifacts: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "artifacts").mkdir(parents=True)
    os.environ["ALIZE_STATE_DIR"] = str(folder / "python-state")
    written: dict[str, Any] = {
        "traces": list(traces(folder / "artifacts")),
        "refusals": list(refusals(folder / "artifacts")),
        "manifests": list(manifests()),
        "openvino": [real(artifact.absolute(), folder / "artifacts") for artifact in artifacts],
    }
    written["chosen"] = [*tuned(folder / "artifacts" / "uniform", folder / "tuned states"), *without_kernels(folder)]
    os.environ["ALIZE_STATE_DIR"] = str(folder / "python-state")
    with load(folder / "artifacts" / "uniform") as model:
        state = DeviceState(model.manifest.digest, fake.fingerprint("cpu"))
    written["state"] = {
        "folder": str(state.folder),
        "key": fingerprint_key({"backend": "openvino", "ü": "ß"}),
        "vocabulary": VOCABULARY,
    }
    for name, value in written.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(Path, sys.argv[2:]))
