"""The tokenizer of `glyphs-text` and `clip-glyphs`: a CLIPTokenizer that gives each word of their
captions one token and reads any other text byte by byte.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glyphs.text.captions import every_word

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
LENGTH = 16


def write_tokenizer(folder: Path, length: int = LENGTH) -> CLIPTokenizer:
    """Writes it as CLIP's is released (vocab.json, merges.txt), which every version reads.

    Byte-pair encoding trained on the words until each is one token; the trainer knows only letters
    that it sees, so the other bytes are added, each also as a word's end.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    trained = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    trained.train_from_iterator(every_word(), trainer)
    learned = json.loads(trained.to_str())["model"]
    characters = list(bytes_to_unicode().values())
    tokens = dict.fromkeys(characters + [character + END_OF_WORD for character in characters])
    tokens |= dict.fromkeys(sorted(learned["vocab"], key=learned["vocab"].__getitem__))
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    merges = [" ".join(pair) for pair in learned["merges"]]
    names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **names}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)
