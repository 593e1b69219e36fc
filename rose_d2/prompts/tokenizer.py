"""The LMM's tokenizer: a Hugging Face one, or the built-in spelling tokenizer."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from rose_d2.prompts.conversation import IMAGE_TOKEN

START_TOKEN = "<|im_start|>"
END_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"
# Of the paper's other frameworks (Table 3): a target of a stack, and a patch to be named.
SEG_TOKEN = "<SEG>"
REGION_TOKEN = "<REGION>"

# LLaVA-OneVision's turn format (transformers' conversion script): no system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Unigram scores: the segmentation with the highest sum wins, so a listed word beats its
# spelling, and a pair of letters beats two letters.
WORD_SCORE, PAIR_SCORE, CHARACTER_SCORE, BYTE_SCORE = -2.0, -8.0, -10.0, -30.0
SPACE = "▁"


def build_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub, or build the tiny model's own.

    Its chat template is the processor's, where there is one: beside LLaVA-OneVision's stands
    Qwen2's own, which knows no image and puts a system message in front.

    Args:
        source: "tiny", or what `AutoTokenizer.from_pretrained` takes.

    Raises:
        ValueError: if `source` is empty.
        OSError: from transformers, when nothing is found there.
    """
    if not source:
        raise ValueError(
            "No tokenizer is configured: set MODEL.LMM.PRETRAINED or MODEL.LMM.TOKENIZER to a "
            'Hugging Face folder or name, or MODEL.LMM.TOKENIZER to "tiny".'
        )
    if source == "tiny":
        return build_spelling_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(source)
    processor, _ = ProcessorMixin.get_processor_dict(source)
    template = processor.get("chat_template")
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def build_spelling_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny model's tokenizer: instruction words are tokens, everything else is spelled.

    A unigram model over a fixed list: the words of the instructions (`tiny_words.txt`), frequent
    pairs of letters (`tiny_pairs.txt`), single characters and bytes. Names take several tokens,
    as they do with a large model's tokenizer, so naming stays generation. Nothing is trained or
    downloaded; the same ids come out on every machine.
    """
    tokenizer = Tokenizer(models.Unigram(_vocabulary(), unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        additional_special_tokens=[START_TOKEN, IMAGE_TOKEN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@lru_cache(maxsize=1)
def _vocabulary() -> list[tuple[str, float]]:
    special = ["<unk>", PAD_TOKEN, END_TOKEN, START_TOKEN, IMAGE_TOKEN]
    scores = dict.fromkeys(special, 0.0)
    scores.update((f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256))
    characters = [chr(code) for code in range(32, 127)] + ["\n", SPACE]
    scores.update(dict.fromkeys(characters, CHARACTER_SCORE))
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pairs = [SPACE + letter for letter in letters] + _listed("tiny_pairs.txt")
    scores.update(dict.fromkeys(pairs, PAIR_SCORE))
    for word in _listed("tiny_words.txt"):
        scores[SPACE + word] = WORD_SCORE
        # Only capitals and turn names begin a line; inside a name such a piece would be a shortcut.
        if word[0].isupper() or word in ("user", "assistant"):
            scores[word] = WORD_SCORE
    return list(scores.items())


def _listed(file_name: str) -> list[str]:
    text = resources.files("rose_d2.prompts").joinpath(file_name).read_text(encoding="utf-8")
    return [word for line in text.splitlines() if not line.startswith("#") for word in line.split()]
