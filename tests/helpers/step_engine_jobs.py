"""A small ROSE trained by every step engine, on two processes and on one; a script, for it forks.

`python step_engine_jobs.py FOLDER STEPS [curves]` writes `FOLDER/<processes>-<run>.pt` for each
run: losses by step, final weights and the state after half the steps. With `curves` no run is
resumed.
"""

import functools
import os
import random
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed  # noqa: F401  (once for all the forked processes)
import numpy as np
import torch
import torch.multiprocessing
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

import rose_d2  # noqa: F401  (registers the model)
from rose_d2.config.defaults import add_rose_config
from rose_d2.engine.trainer import build_step_engine
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames

SIDE, NAMES, DATASET = 84, ("dog", "red car", "tree"), "rose_test_step_engines"
TOTAL_BATCH, ACCUMULATION = 4, 2
WITHOUT_TARGETS = 2  # in this step the second half of every micro-batch has no target
DEEPSPEED = ("SOLVER.ENGINE", "deepspeed", "SOLVER.DEEPSPEED.ZERO_STAGE")
DEEPSPEED_JSON = "deepspeed.json"
SKIPPING = ("SOLVER.MAX_SKIPPED_STEPS", 1)
BFLOAT16 = ("SOLVER.AMP.ENABLED", True)


def small_config(folder: Path, *opts):
    """The 7B recipe (frozen bases, LoRA, gradient checkpointing) without anything random."""
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parents[1] / "shrunken.yaml"))
    cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = True
    for part in ("VISION_TOWER", "PROJECTOR", "LANGUAGE_MODEL", "SAM_IMAGE_ENCODER"):
        cfg.MODEL.TRAINABLE[part] = False
    cfg.MODEL.LORA.ENABLED, cfg.MODEL.LORA.DROPOUT = True, 0.0
    cfg.MODEL.ROSE.MAX_PAIRS = 1000  # all of them, so that none is drawn
    for kind in ("WRONG_ROLE", "NOT_ASKED", "RANDOM"):
        cfg.MODEL.ROSE[f"NEGATIVES_{kind}"] = 1000
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = TOTAL_BATCH, ACCUMULATION
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER = 3, 60
    cfg.SOLVER.LR_MULTIPLIER.HEADS = 0.5
    cfg.SOLVER.DEEPSPEED.CONFIG_FILE = str(folder / DEEPSPEED_JSON)
    cfg.OUTPUT_DIR = str(folder)
    cfg.merge_from_list([str(opt) for opt in opts])
    return cfg


def item(index: int, *, has_targets: bool) -> dict:
    generator = torch.Generator().manual_seed(index)

    def noise(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for mask in masks:
        x, y = torch.randint(0, SIDE - 30, (2,), generator=generator).tolist()
        mask[y : y + 30, x : x + 25] = True
    masks = masks if has_targets else masks[:0]
    instances = Instances((SIDE, SIDE))
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.arange(len(masks))
    instances.gt_category_names = CategoryNames(NAMES[: len(masks)])
    instances.gt_is_stuff = torch.zeros(len(masks), dtype=torch.bool)
    return {
        "image": noise(3, SIDE, SIDE),
        "sam_image": noise(3, 48, 64),
        "height": 96,
        "width": 128,
        "file_name": f"{index}.jpg",
        "task": "instance",
        "dataset_name": DATASET,
        "conversation": Conversation("Segment everything.", "None."),
        "instances": instances,
        "negative_points": torch.zeros(0, 2),
        "ignore_mask": torch.zeros(SIDE, SIDE, dtype=torch.bool),
    }


def micro_batches(start_step: int):
    per_rank = TOTAL_BATCH // comm.get_world_size()
    ranks_first = comm.get_rank() * per_rank
    step = start_step
    while True:
        for micro_step in range(ACCUMULATION):
            first = (step * ACCUMULATION + micro_step) * TOTAL_BATCH
            yield [
                item(first + i, has_targets=step != WITHOUT_TARGETS or i < TOTAL_BATCH // 2)
                for i in range(ranks_first, ranks_first + per_rank)
            ]
        step += 1


def whole_weights(engine, model):
    with engine.gathered_parameters():
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def scores(engine, model):
    """What the model answers in mid-training: each process asks for as many images as it likes."""
    with engine.evaluation(), torch.no_grad():
        batch = [item(1000 + i, has_targets=False) for i in range(1 + comm.get_rank())]
        answers = model.eval()(batch)
        model.train()
    return [answer["open_instances"].scores for answer in answers]


def break_loss(model, engine, step: int) -> None:
    """Make one loss of the last rank NaN in one step, with a gradient that stays finite."""

    def add_nan(module, inputs, losses):
        if engine.iter == step and comm.get_rank() == comm.get_world_size() - 1:
            losses["loss_text"] = losses["loss_text"] + float("nan")

    model.register_forward_hook(add_nan)


def run(
    folder: Path, name: str, steps: int, *opts, resumed: str = "", broken: int | None = None
) -> None:
    """Train for `steps` steps, or for the second half of them after the state of another run."""
    cfg = small_config(folder, *opts)
    rank = comm.get_rank()  # as in a real run, each process draws other weights
    random.seed(rank), np.random.seed(rank), torch.manual_seed(rank)
    model = build_model(cfg)
    engine = build_step_engine(cfg, model)
    if broken is not None:
        break_loss(model, engine, broken)
    start, half = (steps // 2 if resumed else 0), None
    if resumed:
        saved = torch.load(folder / f"{resumed}.pt", weights_only=True)["half"]
        model.load_state_dict(saved["weights"])
        engine.load_state_dict(saved["state"])
    engine.data_iterator = micro_batches(start)
    losses = []
    with EventStorage(start) as storage:
        for engine.iter in range(start, steps):
            if engine.iter == steps // 2 and not resumed:
                half = {"weights": whole_weights(engine, model), "state": engine.state_dict()}
                half["scores"] = comm.gather(scores(engine, model))
            rate = engine.scheduler and engine.optimizer.param_groups[0]["lr"]
            engine.run_step()
            if engine.scheduler is not None:  # as detectron2's hook does
                engine.scheduler.step()
                storage.put_scalar("lr", rate, smoothing_hint=False)
            latest = {key: value for key, (value, _) in storage.latest().items()}
            # Statistics "rose/..." are those of the main process alone.
            losses.append({k: v for k, v in latest.items() if k != "data_time" and "/" not in k})
            storage.step()
    result = {"losses": losses, "weights": whole_weights(engine, model)}
    result["state"], result["half"] = engine.state_dict(), half
    if comm.is_main_process():
        torch.save(result, folder / f"{comm.get_world_size()}-{name}.pt")
    comm.synchronize()  # another run of all processes may read it at once


def main(folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    torch.cpu._is_avx512_bf16_supported = lambda: True  # the same runs on every CPU
    MetadataCatalog.get(DATASET).set(thing_classes=list(NAMES), evaluator_type="coco")
    run(folder, "torch", steps)
    for stage in (1, 2, 3):
        run(folder, f"zero{stage}", steps, *DEEPSPEED, stage)
    if len(sys.argv) > 3:  # only the curves
        return
    if comm.get_world_size() == 2:
        run(folder, "zero3-resumed", steps, *DEEPSPEED, 3, resumed="2-zero3")
        run(folder, "torch-skipped", steps, *SKIPPING, broken=1)
        run(folder, "zero2-skipped", steps, *DEEPSPEED, 2, *SKIPPING, broken=1)
    else:
        run(folder, "torch-resumed", steps, resumed="2-zero3")
        run(folder, "zero1-resumed", steps, *DEEPSPEED, 1, resumed="2-zero3")
        run(folder, "bf16-zero2", steps, *DEEPSPEED, 2, *BFLOAT16)
        run(folder, "bf16-zero1-resumed", steps, *DEEPSPEED, 1, *BFLOAT16, resumed="1-bf16-zero2")


if __name__ == "__main__":
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = fork
    arguments = (Path(sys.argv[1]), int(sys.argv[2]))
    # Else stage 3 would not divide weights as small as these.
    (arguments[0] / DEEPSPEED_JSON).write_text(
        '{"zero_optimization": {"stage3_param_persistence_threshold": 1000}}'
    )
    launch(main, 2, dist_url="auto", args=arguments)
    launch(main, 1, args=arguments)
