"""The toy model trained by DeepSpeed, started as train_net.py is; a script for launchers.

`python launched_training.py --num-gpus 2 OUTPUT_DIR KEY VALUE ...`
"""

import json
import os
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from toy_training import ToyTrainer, seed_all, toy_config

from rose_d2.engine.launch import run_job

OPTS = ("SOLVER.ENGINE", "deepspeed", "SOLVER.DEEPSPEED.ZERO_STAGE", 2, "SOLVER.MAX_ITER", 3)


def main(args) -> None:
    cfg = toy_config(
        args.opts[0], "MODEL.META_ARCHITECTURE", "NoDropoutROSE", *OPTS, *args.opts[1:]
    )
    seed_all(cfg.SEED)
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    place = [comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size()]
    (Path(cfg.OUTPUT_DIR) / f"place-{comm.get_rank()}.json").write_text(json.dumps(place))


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    parser = default_argument_parser()
    parser.add_argument("--local_rank", type=int)
    run_job(main, parser.parse_args(sys.argv[1:]))
