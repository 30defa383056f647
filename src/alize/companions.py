"""What travels with a model into an artifact of any target: config, tokenizer, chat template."""

import json
import shutil
from pathlib import Path

from alize.chat_form import CHAT_FORM, chat_form_json
from alize.models.checkpoint import Checkpoint
from alize.runtimes.text import Tokenizer

__all__ = ["copy_companions", "write_chat_form"]


def copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json, tokenizer and what else travels with a model; of a multimodal or quantised one the config.json of the float
    text model that was built."""
    for path in checkpoint.companions:
        shutil.copyfile(path, folder / path.name)
    if checkpoint.multimodal is None and checkpoint.quantization is None:
        shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
    else:
        text = json.dumps(checkpoint.config, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def write_chat_form(folder: Path) -> None:
    """The chat template's form for runtimes without Jinja, where there is a template."""
    if not (folder / "tokenizer.json").is_file():
        return
    tokenizer = Tokenizer(folder)
    if tokenizer.chat_template is not None:
        text = chat_form_json(tokenizer.chat_template, tokenizer.special_tokens)
        (folder / CHAT_FORM).write_text(text, encoding="utf-8")
