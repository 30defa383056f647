"""Tiny tokenizers of the two kinds that Mistrals have, trained here: byte-level BPE, and SentencePiece with byte fallback."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "The trade wind is the steady one you ship on. The capital of France is Paris.",
    "Монгол Улсын нийслэл бол Улаанбаатар хот юм.",
    "پاکستان کا دارالحکومت اسلام آباد ہے۔",
    "👩‍👩‍👧 👍🏽 🇲🇳 🙂",
] * 3


def byte_level(folder: Path, **config: Any) -> Path:
    """As Nemo and the demo model: the alphabet is the 256 bytes, merges cross characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return _save(folder, tokenizer, config)


def byte_fallback(folder: Path, **config: Any) -> Path:
    """As Mistral 7B: words start with a low line, and what the alphabet lacks (here all but Latin) is written in byte tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS[:1], trainer)
    fields = json.loads(tokenizer.to_str())
    vocabulary = fields["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    fields["model"]["byte_fallback"] = fields["model"]["fuse_unk"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _save(folder, tokenizer, config)


def _save(folder: Path, tokenizer: tokenizers.Tokenizer, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields | config))
    return folder
