"""A model of a few dozen weights with ROSE's training interface, and its loader.

Also a script, run by the tests in several processes:
`python toy_training.py --num-gpus 2 KEY VALUE ...` trains and writes `gradients.pt`.
"""

import random
from itertools import count
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, launch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from rose_d2.config.defaults import add_rose_config
from rose_d2.engine.trainer import RoseTrainer

VOCABULARY, WIDTH = 7, 4


class ToyROSE(nn.Module):
    """Tied token embedding, norm, head and dropout; draws from all three random generators."""

    def __init__(self, cfg: CfgNode | None = None, *, base: str = "") -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.register_buffer("scale", torch.ones(1))
        self.dropout = 0.3
        self.base = base

    def trainable_parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {
            "heads": [
                *((f"norm.{n}", p) for n, p in self.norm.named_parameters()),
                *((f"head.{n}", p) for n, p in self.head.named_parameters()),
            ],
            "embed_tokens": [("embed_tokens.weight", self.embed_tokens.weight)],
            "lm_head": [("lm_head.weight", self.lm_head.weight)],
        }

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        frozen = [(f"frozen.{n}", p) for n, p in self.frozen.named_parameters()]
        return {**self.trainable_parts(), "projector": frozen}

    def base_revisions(self) -> dict[str, str]:
        return {"frozen": self.base} if self.base else {}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        tokens = torch.stack([item["tokens"] for item in batched_inputs])
        hidden = self.norm(self.frozen(self.embed_tokens(tokens))) * self.scale
        hidden = nn.functional.dropout(self.head(hidden), self.dropout, self.training)
        logits = self.lm_head(hidden)
        jitter = 1 + 0.1 * self.dropout * (random.random() + np.random.rand())
        text = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()) * jitter
        weight = sum(item.get("loss_weight", 1.0) for item in batched_inputs) / len(tokens)
        return {"loss_text": text, "loss_mask_dice": hidden.square().mean() * weight}


class NoDropoutROSE(ToyROSE):
    """The same without randomness, for comparing gradients."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.dropout = 0.0


def toy_item(index: int) -> dict:
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(0, VOCABULARY, (5,), generator=generator)
    return {"tokens": tokens, "file_name": f"{index:06d}.jpg"}


class ToyTrainer(RoseTrainer):
    """RoseTrainer over numbered toy items; evaluation draws random numbers."""

    @classmethod
    def build_train_loader(cls, cfg, start_iter=0):
        from detectron2.utils import comm

        per_rank = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        for batch in count(start_iter * cfg.SOLVER.ACCUMULATION_STEPS):
            first = batch * cfg.SOLVER.IMS_PER_BATCH + comm.get_rank() * per_rank
            yield [toy_item(index) for index in range(first, first + per_rank)]

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        torch.rand(3), np.random.rand(3), random.random()
        return {"toy": {"metric": 1.0}}


def toy_config(output_dir: str | Path, *opts) -> CfgNode:
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ToyROSE"
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.SEED = 3
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.MAX_ITER = 12
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 5
    cfg.SOLVER.LOG_PERIOD = 1
    cfg.merge_from_list([str(opt) for opt in opts])
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    return cfg


def seed_all(seed: int) -> None:
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


def main(args) -> None:
    cfg = toy_config(args.opts[0], *args.opts[1:])
    seed_all(cfg.SEED)
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    gradients = {n: p.grad for n, p in trainer.checkpointer.model.named_parameters()}
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    torch.save(gradients, Path(cfg.OUTPUT_DIR) / "gradients.pt")


for _model in (ToyROSE, NoDropoutROSE):
    META_ARCH_REGISTRY.register(_model)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(main, arguments.num_gpus, dist_url="auto", args=(arguments,))
