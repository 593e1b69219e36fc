"""`train_net.py` as a user runs it: the tiny model on a few clip-art scenes, in processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scripts import ROOT, finish_script, run_script, start_script

LOSSES = (
    "loss_text",
    "loss_category",
    "loss_mask_bce",
    "loss_mask_dice",
    "loss_objectness",
    "loss_siglip",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment of a machine without GPU that has twelve scenes."""
    root = tmp_path_factory.mktemp("datasets")
    sizes = ("--num-train", 8, "--num-val", 2, "--num-val-unseen", 2, "--num-workers", 1)
    run_script("datasets/prepare_clipart.py", "--root", root, *sizes, output=root / "output.txt")
    return {"DETECTRON2_DATASETS": root}


def command_line(output_dir, *args):
    """train_net.py on the tiny config, logging every iteration; `args` may end in opts."""
    flags = [arg for arg in args if str(arg).startswith("--")]
    opts = {
        "OUTPUT_DIR": output_dir,
        "SEED": 1,
        "SOLVER.MAX_ITER": 5,
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.ACCUMULATION_STEPS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "SOLVER.LOG_PERIOD": 1,
        "DATASETS.TEST": "()",
        **dict(arg for arg in args if isinstance(arg, tuple)),
    }
    pairs = [item for pair in opts.items() for item in pair]
    return ["train_net.py", *flags, "--config-file", ROOT / "configs/rose_tiny.yaml", *pairs]


def start(environment, output_dir, *args, fork=False):
    output = output_dir / "output.txt"
    return start_script(*command_line(output_dir, *args), output=output, env=environment, fork=fork)


def finish(process, output_dir):
    """Wait for the process; return its exit status and what it printed."""
    return finish_script(process, output_dir / "output.txt")


def run(environment, output_dir, *args):
    status, output = finish(start(environment, output_dir, *args), output_dir)
    assert status == 0, output[-3000:]
    return output


def loss_curve(output_dir):
    """Iteration -> losses; of an iteration that was done twice, both have to agree."""
    curve = {}
    for line in (output_dir / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        if "total_loss" in row:
            losses = {name: row[name] for name in LOSSES}
            assert curve.setdefault(row["iteration"], losses) == pytest.approx(losses, rel=1e-5)
    return curve


@pytest.fixture(scope="module")
def whole_run(environment, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("whole")
    return output_dir, run(environment, output_dir)


def test_run_writes_losses_checkpoints_and_progress(whole_run):
    output_dir, output = whole_run
    assert sorted(loss_curve(output_dir)) == [0, 1, 2, 3, 4]
    folders = sorted(path.name for path in output_dir.iterdir() if path.is_dir())
    assert folders == ["model_0000001", "model_0000003", "model_final"]
    assert "eta: " in output and "loss_mask_dice: " in output


def test_killed_run_resumes_on_the_same_curve(environment, whole_run, tmp_path):
    process = start(environment, tmp_path)
    while not (tmp_path / "last_checkpoint").exists():
        assert process.is_alive(), (tmp_path / "output.txt").read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "model_final").exists()
    run(environment, tmp_path, "--resume")
    resumed, whole = loss_curve(tmp_path), loss_curve(whole_run[0])
    # The row of a step is written after its checkpoint, so the kill may come between the two.
    assert set(whole) - set(resumed) <= {1} and set(resumed) <= set(whole)
    for iteration, losses in resumed.items():
        assert whole[iteration] == pytest.approx(losses, rel=1e-5), iteration


def test_two_processes_train_together(environment, whole_run, tmp_path):
    # As a user starts it: nothing is forked, every process imports for itself.
    command = command_line(tmp_path, "--num-gpus=2", ("SOLVER.MAX_ITER", 2))
    env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, **environment}
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in env.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # The text loss has no randomness of its own, so one process gives the same.
    one, two = loss_curve(whole_run[0]), loss_curve(tmp_path)
    assert two[0]["loss_text"] == pytest.approx(one[0]["loss_text"], rel=1e-4)
    assert (tmp_path / "model_final" / "model.safetensors").is_file()


def test_nan_stops_with_terms_and_images_and_ends_every_process(environment, tmp_path):
    # The second step multiplies the weights by the rate, the third meets the damage.
    process = start(environment, tmp_path, "--num-gpus=2", ("SOLVER.BASE_LR", 1e38), fork=True)
    status, output = finish(process, tmp_path)
    assert status != 0
    message = next(line for line in output.splitlines() if "FloatingPointError: " in line)
    assert "loss_" in message and ".jpg" in message and "iteration 2" in message


def test_evaluation_prints_tables_and_writes_results(environment, whole_run, tmp_path):
    weights = whole_run[0] / "model_final"
    names = ("clipart_instance_val", "clipart_refer_val")
    output = run(
        environment,
        tmp_path,
        "--eval-only",
        ("MODEL.WEIGHTS", weights),
        ("DATASETS.TEST", str(names)),
    )
    assert "copypaste: Task: segm" in output and "copypaste: Task: referring" in output
    report = json.loads((tmp_path / "results.json").read_text())
    assert set(report["results"]) == set(names)
    assert "AP" in report["results"]["clipart_instance_val"]["segm"]
    assert report["dataset_sizes"]["clipart_instance_val"] == 2


def test_evaluation_of_missing_weights_is_one_sentence(environment, tmp_path):
    process = start(environment, tmp_path, "--eval-only", ("MODEL.WEIGHTS", "nowhere"))
    status, output = finish(process, tmp_path)
    assert status == 1
    assert "train_net.py: the job cannot start. weights: No weights at nowhere: set" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --config-file"),
        (["--config-file", "tiny.yaml", "--num-machines", "2"], "--dist-url tcp://HOST:PORT"),
        (
            [
                "--config-file",
                "tiny.yaml",
                *["--custom-coco", "a", "b", "--custom-labels", "a", "b", "c"],
            ],
            "not allowed with",
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, message, tmp_path):
    output = tmp_path / "output.txt"
    assert message in run_script("train_net.py", *arguments, output=output, status=2)


def test_help_comes_at_once(tmp_path):
    program = (
        "import runpy, sys; sys.argv = ['train_net.py', '--help']\n"
        "try: runpy.run_path('train_net.py', run_name='__main__')\n"
        "finally: print({'torch', 'detectron2', 'rose_d2'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, text=True
    )
    assert ended.stdout.startswith("usage:") and ended.stdout.endswith("set()\n")
