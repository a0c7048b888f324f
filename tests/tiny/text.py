"""Text encoders of transformers, as small as they come and random, and tokenizers of letters.

All are the real classes. Every character is a token, so that no vocabulary has to be fetched.
"""

import json
from pathlib import Path
from typing import Any

from tests.tiny.weights import lively

WORDS = 77  # tokens of a prompt for CLIP
LENGTH = 12  # and for the others, where the tokenizer says it
ENDS = ("<pad>", "<s>", "</s>", "<unk>")
CHAT = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)


def clip_tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=WORDS)


def clip_text(tokenizer, width: int = 32, *, projected: bool = False, **config: Any):
    """A CLIP text model for this tokenizer; `projected`: with a pooled output of `width`."""
    import transformers

    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": WORDS,
        "projection_dim": width,
        **{
            f"{end}_token_id": getattr(tokenizer, f"{end}_token_id")
            for end in ("bos", "eos", "pad")
        },
    }
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return lively(kind(transformers.CLIPTextConfig(**(options | config))), 3 + projected).eval()


def letter_tokenizer(*, ends: bool):
    """Every character a token; `ends`: with a token behind the last one, as T5 has it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {piece: number for number, piece in enumerate((*ENDS, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
        chat_template=CHAT,
    )


def t5(width: int):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=99, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0
    )
    return lively(T5EncoderModel(config), 5)


def decoder_config(width: int, num_layers: int) -> dict:
    """What the language models share."""
    return {
        "vocab_size": 99,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def gemma2(width: int):
    from transformers import Gemma2Config, Gemma2Model

    return lively(Gemma2Model(Gemma2Config(**decoder_config(width, 2))), 6)


def qwen3(width: int):
    """With the 27 layers of which FLUX.2 Klein reads the 9th, 18th and 27th."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return lively(Qwen3ForCausalLM(Qwen3Config(**decoder_config(width, 27))), 7)


def mistral3(width: int):
    """With the 30 layers of which FLUX.2 reads the 10th, 20th and 30th."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    eye = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **decoder_config(width, 30)},
        vision_config={"model_type": "pixtral", **eye, "num_attention_heads": 1, "head_dim": 8},
        image_token_index=3,
    )
    return lively(Mistral3ForConditionalGeneration(config), 8)


def qwen2_vl(width: int):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
    text = decoder_config(width, 2) | {"rope_scaling": rope}
    text.pop("head_dim")
    eye = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=eye | {"out_hidden_size": width})
    return lively(Qwen2_5_VLForConditionalGeneration(config), 9)
