"""The tiny real artifacts that the C++ tests run: python tests/cpp/tiny_artifacts.py FOLDER NAME... makes FOLDER/NAME of each.

A name is a kind of tests/tiny.py with float weights; or int8; or int4-GROUP, wide enough for that group and with an odd number
of rows in the head; or experts-int4.
"""

import sys
from pathlib import Path
from typing import Any

from alize.building import build
from alize.validate.judge import Budget
from tests.tiny import KINDS, tiny_checkpoint

LOOSE = Budget(quantisation_kl=9, quantisation_kl_max=99, runtime_kl=9, runtime_kl_max=99)  # random weights lose a lot
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 323, "layers": 2, "window": 6}


def main(folder: Path, *names: str) -> None:
    for name in names:
        kind, _, group = name.partition("-")
        output, checkpoint = folder / name, folder.with_name("checkpoints") / name
        if name in KINDS:
            tiny_checkpoint(checkpoint, tokenizer=True, **KINDS[name])
            build(str(checkpoint), output=output, target="openvino")
        elif name == "int8":
            tiny_checkpoint(checkpoint, tokenizer=True, **KINDS["v0.1"])
            build(str(checkpoint), output=output, target="openvino", weights="int8", budget=LOOSE)
        else:
            experts = 4 if kind == "experts" else 0
            tiny_checkpoint(checkpoint, tokenizer=True, experts=experts, **WIDE)
            group = "64" if experts else group
            build(str(checkpoint), output=output, target="openvino", weights="int4", group_size=group, budget=LOOSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
