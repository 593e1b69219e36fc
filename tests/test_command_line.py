"""What all scripts do alike: KEY VALUE pairs at the end, and mistakes in one sentence."""

import pytest

from rose_d2.command_line import add_config_arguments, make_parser, run_main


@pytest.fixture
def parser():
    parser = make_parser("Teaches.")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--size", nargs="+")
    add_config_arguments(parser, default="configs/rose_tiny.yaml")
    return parser


@pytest.mark.parametrize(
    ("line", "folder", "opts"),
    [
        ("", None, []),
        ("here", "here", []),
        ("here SEED -1", "here", ["SEED", "-1"]),
        ("here --opts SEED 1", "here", ["SEED", "1"]),
        ("here --size 1 2 --opts SEED 1", "here", ["SEED", "1"]),
        ("here --config-file x.yaml SEED 1 TEST.TOP_K 2", "here", ["SEED", "1", "TEST.TOP_K", "2"]),
    ],
)
def test_pairs_stand_at_the_end(parser, line, folder, opts):
    args = parser.parse_args(line.split())
    assert (args.folder, args.opts) == (folder, opts)
    assert args.config_file == ("x.yaml" if "x.yaml" in line else "configs/rose_tiny.yaml")


@pytest.mark.parametrize("line", ["here --no-such-option", "here SEED 1 --no-such-option"])
def test_unknown_options_are_no_pairs(parser, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(line.split())
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_script_without_a_config_takes_no_pairs(capsys):
    with pytest.raises(SystemExit, match="2"):
        make_parser(None).parse_args(["SEED", "1"])
    assert "unrecognized arguments: SEED 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("give 1 or more."), 1, "test_command_line.py: error: give 1 or more.\n"),
        (OSError("no such folder"), 1, "test_command_line.py: error: no such folder\n"),
        (KeyboardInterrupt(), 130, "test_command_line.py: interrupted; run it again to go on.\n"),
    ],
)
def test_mistakes_are_one_sentence_and_a_status(error, status, said, capsys):
    def work(args):
        raise error

    assert run_main(work, None) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (2, 2)])
def test_the_status_is_that_of_the_work(returned, status):
    assert run_main(lambda args: returned, None) == status
