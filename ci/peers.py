"""Greedy continuations of token ids by the engines that users have already, to be compared with alize's own.

    python peers.py prompts ARTIFACT LENGTH FILE    token ids: a question in the chat template, and LENGTH tokens of the licence
    python peers.py run CLIENT ARTIFACT PROMPTS FILE
    python peers.py compare ALIZE FILE...           exit code 1 where a client wrote anything else

Each client runs in its own environment (see `ci/peers`), so nothing but the standard library is imported up here.
Everything ends before the first end-of-sequence token; `alize` also notes how far ahead of the second each token was.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW_TOKENS = 64
# What alize runs the OpenVINO artifact with. The engine's defaults, bfloat16 where the CPU has it and a cache of 8 bits, decide
# near-ties the other way.
SAME_PRECISION = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}
QUESTION = "What is a trade wind, and why did sailors like it?"


def alize(folder: Path, prompt: list[int]) -> dict[str, Any]:
    """Through `load` and Session, as `alize run` does it."""
    import numpy as np

    from alize.runtimes import load

    ids: list[int] = []
    margins: list[float] = []
    with load(folder) as model, model.session() as session:
        tokens = prompt
        while len(ids) < NEW_TOKENS:
            logits = session.append(np.array([tokens], dtype=np.int64))[0, -1]
            second, first = np.sort(logits)[-2:]
            tokens = [int(logits.argmax())]
            ids += tokens
            margins.append(float(first - second))
    return {"ids": ids, "margins": margins}


def openvino_genai(folder: Path, prompt: list[int]) -> dict[str, Any]:
    """LLMPipeline as it opens an IR by default: with paged attention."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(str(folder), "CPU", **SAME_PRECISION)
    ids = ov.Tensor(np.array([prompt], dtype=np.int64))
    mask = ov.Tensor(np.ones((1, len(prompt)), dtype=np.int64))
    config = genai.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, apply_chat_template=False)
    config.set_eos_token_id(_eos(folder))
    return {"ids": pipeline.generate(genai.TokenizedInputs(ids, mask), config).tokens[0]}


def optimum_intel(folder: Path, prompt: list[int]) -> dict[str, Any]:
    from optimum.intel import OVModelForCausalLM

    return _generate(OVModelForCausalLM.from_pretrained(str(folder), export=False, ov_config=SAME_PRECISION), prompt)


def optimum_onnx(folder: Path, prompt: list[int]) -> dict[str, Any]:
    from optimum.onnxruntime import ORTModelForCausalLM

    return _generate(ORTModelForCausalLM.from_pretrained(str(folder)), prompt)


def onnxruntime_genai(folder: Path, prompt: list[int]) -> dict[str, Any]:
    import onnxruntime_genai as genai

    parameters = genai.GeneratorParams(model := genai.Model(str(folder)))
    parameters.set_search_options(max_length=len(prompt) + NEW_TOKENS, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return {"ids": [int(token) for token in generator.get_sequence(0)[len(prompt) :]]}


CLIENTS: dict[str, Callable[[Path, list[int]], dict[str, Any]]] = {
    "alize": alize,
    "openvino-genai": openvino_genai,
    "optimum-intel": optimum_intel,
    "optimum-onnx": optimum_onnx,
    "onnxruntime-genai": onnxruntime_genai,
}


def _generate(model: Any, prompt: list[int]) -> dict[str, Any]:
    """`generate` of transformers, which both optimum packages use."""
    import torch

    ids = torch.tensor([prompt])
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    return {"ids": written[0, len(prompt) :].tolist()}


def _eos(folder: Path) -> int:
    eos = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return int(eos[0] if isinstance(eos, list) else eos)


def prompts(folder: Path, length: int, output: Path) -> None:
    from alize.runtimes import Tokenizer

    tokenizer = Tokenizer(folder)
    licence = tokenizer.encode((Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8"))
    question = tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    output.write_text(json.dumps([question.tolist(), licence[:length].tolist()]))


def run(client: str, folder: Path, prompts_file: Path, output: Path) -> None:
    answers = []
    for prompt in json.loads(prompts_file.read_text()):
        answer = CLIENTS[client](folder, prompt)
        eos = _eos(folder)
        if eos in answer["ids"]:
            answer["ids"] = answer["ids"][: answer["ids"].index(eos)]
        answers.append(answer)
    output.write_text(json.dumps(answers))


def compare(ours_file: Path, *theirs_files: Path) -> int:
    """Prints a line for each client and prompt; the exit code says whether all wrote the same tokens."""
    ours = json.loads(ours_file.read_text())
    different = 0
    for file in theirs_files:
        for number, (our, their) in enumerate(zip(ours, json.loads(file.read_text()), strict=True)):
            pairs = zip([*our["ids"], None], [*their["ids"], None], strict=False)
            where = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
            if where is None:
                print(f"{file.stem}, prompt {number}: the same {len(our['ids'])} tokens")
                continue
            different += 1
            margin = our["margins"][where] if where < len(our["margins"]) else float("nan")
            print(f"{file.stem}, prompt {number}: differs at token {where}, where alize's first choice led by {margin:.3f}")
    return int(different > 0)


def main(command: str, *words: str) -> int:
    if command == "prompts":
        prompts(Path(words[0]), int(words[1]), Path(words[2]))
    elif command == "run":
        run(words[0], Path(words[1]), Path(words[2]), Path(words[3]))
    elif command == "compare":
        return compare(*map(Path, words))
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
