"""onnxruntime-genai as a subject, in an environment that has it:

python -m benchmarks.subjects.onnxruntime_genai FOLDER cold PROMPT | serve
"""

import json
import sys
from pathlib import Path

import onnxruntime_genai as genai

from benchmarks.subjects.process import TokenClock, answer, prompt_tokens


class Subject:
    def __init__(self, folder: Path) -> None:
        self.vocabulary: int = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
        self.model = genai.Model(str(folder))

    def decode(self, size: int, count: int, seed: int) -> dict[str, float]:
        tokens = prompt_tokens(size, seed, self.vocabulary)
        clock = TokenClock()
        parameters = genai.GeneratorParams(self.model)
        # min_length: an end-of-sequence token must not end it
        parameters.set_search_options(max_length=size + count, min_length=size + count, do_sample=False)
        generator = genai.Generator(self.model, parameters)
        generator.append_tokens(tokens)
        for _ in range(count):
            generator.generate_next_token()
            clock.token()
        return clock.figures()


def main(folder: str, *what: str) -> None:
    answer(lambda: Subject(Path(folder)), what, alone="one generator at a time")


if __name__ == "__main__":
    main(*sys.argv[1:])
