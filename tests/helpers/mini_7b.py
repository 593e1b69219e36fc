"""All that configs/rose_7b.yaml names, a few kilobytes each, in the layouts of the official files.

A LLaVA-OneVision folder with Qwen2's tokenizer, a SigLIP folder and a SAM file, with random
weights. `write_mini_7b` returns the KEY VALUE pairs that turn the 7B config into this model: sizes
and paths, nothing else.
"""

import json
import re
import string
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)

from rose_d2.modeling.mask_head import build_sam_tiny

IMAGE_SIZE, SAM_SIZE, TEXT_DIM = 84, 64, 24
# What the tower was made for: 384 / 14 = 27 patches a side in the true one, 4 here.
TOWER_SIZE = 56
PINPOINTS = [[TOWER_SIZE * y, TOWER_SIZE * x] for y in (1, 2) for x in (1, 2)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
# The turns of llava-hf's folders: images, videos, then text; no system message.
PROCESSOR_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2's own, which its tokenizer's folder has: strings only, and a system message in front.
TOKENIZER_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATE_LAYOUTS = (
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "tokenizer_config.json",
)
WORDS = Path(__file__).parents[2] / "rose_d2" / "prompts" / "tiny_words.txt"


def write_mini_7b(folder: Path) -> list[str]:
    """Write `lmm`, `siglip` and `sam.pth`.

    Returns:
        KEY VALUE pairs over configs/rose_7b.yaml: sizes and paths.
    """
    write_llava(folder / "lmm")
    write_siglip(folder / "siglip")
    write_sam(folder / "sam.pth")
    values = {
        "MODEL.LMM.PRETRAINED": folder / "lmm",
        "MODEL.LMM.IMAGE_SIZE": IMAGE_SIZE,
        "MODEL.PATCH_ANALYZER.HIDDEN_DIM": 32,
        "MODEL.PATCH_ANALYZER.SIGLIP_DIM": TEXT_DIM,
        "MODEL.MASK_HEAD.SAM_ARCH": "tiny",
        "MODEL.MASK_HEAD.IMAGE_SIZE": SAM_SIZE,
        "MODEL.MASK_HEAD.SAM_CHECKPOINT": folder / "sam.pth",
        "MODEL.SIGLIP_TEXT.SOURCE": folder / "siglip",
        "MODEL.SIGLIP_TEXT.CACHE_DIR": folder / "cache",
    }
    return [str(entry) for pair in values.items() for entry in pair]


def write_llava(folder: Path, template: str = "chat_template.json") -> None:
    """Write a folder as llava-hf publishes it.

    Args:
        folder: to write.
        template: the file that holds the chat template, one of `TEMPLATE_LAYOUTS`; the last has
            only the tokenizer's own.
    """
    torch.manual_seed(0)
    tokenizer = qwen2_tokenizer()
    text = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + 24,  # as Qwen2's, with rows that no token has
        tie_word_embeddings=False,
    )
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=TOWER_SIZE,
        patch_size=14,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=PINPOINTS,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=False,
    )
    LlavaOnevisionForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    tokenizer.chat_template = TOKENIZER_TEMPLATE
    tokenizer.save_pretrained(folder)
    _move_template(folder)
    LlavaOnevisionImageProcessor(
        size={"height": TOWER_SIZE, "width": TOWER_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        image_grid_pinpoints=PINPOINTS,
    ).save_pretrained(folder)
    processor = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (TOWER_SIZE // 14) ** 2,
        "vision_feature_select_strategy": "full",
        "image_token": "<image>",
        "video_token": "<video>",
    }
    if template == "processor_config.json":
        processor["chat_template"] = PROCESSOR_TEMPLATE
    elif template == "chat_template.json":
        dump(folder / template, {"chat_template": PROCESSOR_TEMPLATE})
    elif template == "chat_template.jinja":
        (folder / template).write_text(PROCESSOR_TEMPLATE)
    dump(folder / "processor_config.json", processor)


def _move_template(folder: Path) -> None:
    """Put the tokenizer's template where Qwen2 has it: into its settings."""
    template = folder / "chat_template.jinja"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    dump(folder / "tokenizer_config.json", {**settings, "chat_template": template.read_text()})
    template.unlink()


def qwen2_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with Qwen2's pre-tokenizer and special tokens; words of the instructions."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    known = set(alphabet)
    for word in WORDS.read_text(encoding="utf-8").split():
        pieces = list("Ġ" + word) if word.isascii() else []
        while len(pieces) > 1:
            pieces[:2] = [pieces[0] + pieces[1]]
            if pieces[0] not in known:
                known.add(pieces[0])
                merges.append((pieces[0][:-1], pieces[0][-1]))
    vocabulary = alphabet + ["".join(pair) for pair in merges] + SPECIAL
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
    )


def write_siglip(folder: Path, *, tokenizer: str = "settings") -> None:
    """Write a folder as google publishes SigLIP: both towers, and `spiece.model`.

    Args:
        folder: to write.
        tokenizer: "settings" that name SiglipTokenizer; "spiece.model" or "tokenizer.json" alone.
    """
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.read_text(encoding="utf-8").split() * 3),
        model_prefix=str(folder / "spiece"),
        vocab_size=200,
        bos_id=-1,
        pad_id=-1,
        eos_id=1,
        unk_id=2,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    sizes = {"hidden_size": TEXT_DIM, "intermediate_size": 32, "num_hidden_layers": 2}
    text = {**sizes, "num_attention_heads": 2, "vocab_size": 300, "projection_size": TEXT_DIM}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    if tokenizer == "tokenizer.json":
        _write_fast_siglip_tokenizer(folder)
        (folder / "spiece.model").unlink()
    if tokenizer == "settings":
        settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64}
        special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
        dump(folder / "tokenizer_config.json", {**settings, **special})
        dump(folder / "special_tokens_map.json", special)


def _write_fast_siglip_tokenizer(folder: Path) -> None:
    """The pieces of spiece.model, in lower case and without punctuation as SigLIP wants text."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    fast = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.unk_id()))
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", pieces.eos_id())]
    )
    fast.save(str(folder / "tokenizer.json"))


def write_sam(path: Path) -> None:
    """Write a file as segment-anything publishes it."""
    torch.manual_seed(2)
    sam = build_sam_tiny(SAM_SIZE)
    torch.save({n: v for n, v in sam.state_dict().items() if not n.startswith("pixel_")}, path)


def dump(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
