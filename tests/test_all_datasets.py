"""Every dataset, from its official layout to a training step, as datasets/README.md has it."""

import pytest
from scripts import run_script

PREPARE = ("ade20k", "coco_stuff", "mapillary_vistas", "refcoco")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a script of the repository on a folder of prepared miniatures."""
    folder = tmp_path_factory.mktemp("all") / "miniatures"
    output = folder.with_name("output.txt")

    def call(*command):
        return run_script(*command, output=output, env={"DETECTRON2_DATASETS": folder})

    call("datasets/prepare_miniatures.py", "--root", folder)
    for name in PREPARE:
        call(f"datasets/prepare_{name}.py", "--num-workers", 1)
    return call


@pytest.mark.slow
def test_the_checker_finds_every_prepared_dataset_sound(run):
    checked = run("tools/check_data.py")
    rows = [line.split() for line in checked.splitlines()]
    states = {row[1]: row[0] for row in rows if row and row[0] in ("present", "partial", "missing")}
    for name in (
        "ade20k_sem_seg_train",
        "ade20k_instance_val",
        "coco_2017_train",
        "coco_2017_val_panoptic",
        "coco_2017_train_stuff_sem_seg",
        "mapillary_vistas_panoptic_train",
        "refcoco_unc_testB",
        "refcoco+_unc_val",
        "refcocog_umd_test",
        "refclef_berkeley_train",
        "grefcoco_unc_testA",
        "reasonseg_val",
    ):
        assert states[name] == "present", f"{name} is {states[name]}"
    assert ", 0 damaged" in checked


@pytest.mark.slow
def test_a_mix_of_all_datasets_and_tasks_trains(run, tmp_path):
    sizes = ["MODEL.LMM.IMAGE_SIZE", 126, "MODEL.MASK_HEAD.IMAGE_SIZE", 128]
    steps = ["SOLVER.MAX_ITER", 5, "SOLVER.LOG_PERIOD", 1, "DATASETS.TEST", "()"]
    said = run(
        "train_net.py",
        *("--config-file", "configs/quick/all_datasets.yaml"),
        *("OUTPUT_DIR", tmp_path / "out", "DATALOADER.NUM_WORKERS", 0, *sizes, *steps),
    )
    assert (tmp_path / "out" / "model_final" / "model.safetensors").is_file()
    assert "Training on coco_2017_train@refinement" in said
    assert "coco_2017_train: left out 4 of 6 items, which show evaluation images" in said
    assert "left out 1 annotations with a box but no mask" in said
