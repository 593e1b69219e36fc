import pytest

from rose_d2.config.read import read_config, read_released_config


def test_file_and_command_line_are_merged():
    cfg = read_config("configs/rose_tiny.yaml", ["TEST.TOP_K", "7"])
    assert cfg.TEST.TOP_K == 7 and cfg.MODEL.META_ARCHITECTURE == "ROSE"
    assert not cfg.is_frozen()


@pytest.mark.parametrize(
    ("opts", "error"),
    [
        (("NO.SUCH_KEY", "1"), "Non-existent key"),
        (("SEED", "many"), "Type mismatch"),
        (("SEED",), "odd length"),
    ],
)
def test_wrong_keys_and_values_are_refused_with_what_was_given(opts, error):
    with pytest.raises(ValueError, match=f"KEY VALUE pairs.*{opts[0]}.*{error}"):
        read_config("configs/rose_tiny.yaml", opts)


def test_a_wrong_file_is_named(tmp_path):
    file = tmp_path / "odd.yaml"
    with pytest.raises(ValueError, match=r"no config file .*odd\.yaml'.* rose_7b\.yaml"):
        read_config(str(file))
    file.write_text("NO_SUCH_KEY: 1\n")
    with pytest.raises(ValueError, match=r"In .*odd\.yaml: Non-existent config key: NO_SUCH_KEY"):
        read_config(str(file))


def test_a_smallest_score_takes_the_place_of_both_thresholds():
    cfg = read_released_config("configs/rose_tiny.yaml", min_score=0.123)
    assert cfg.TEST.SCORE_THRESH == cfg.TEST.PANOPTIC.SCORE_THRESH == 0.123
    assert cfg.MODEL.WEIGHTS.endswith("checkpoints/rose_tiny")
    as_written = read_released_config("configs/rose_tiny.yaml", ["MODEL.WEIGHTS", "mine.pth"])
    assert as_written.TEST.SCORE_THRESH != as_written.TEST.PANOPTIC.SCORE_THRESH
    assert as_written.MODEL.WEIGHTS == "mine.pth"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"_BASE_: nowhere.yaml", "nowhere.yaml"),
        (b"MODEL: {A: [1, 2\nX: }", "line 2, column 2"),
        (b"A: \xff\xfe", "can't decode byte"),
        (b"- a", "it holds a list"),
        (b"", "it is empty"),
        (b"MODEL:\n\tWEIGHTS: x", "line 2, column 1"),
        (b"_BASE_: bad.yaml", "leads back to"),
        (b"_BASE_: [bad.yaml]", "path of one config file on this machine"),
        (b"_BASE_: http://127.0.0.1:1/a.yaml", "path of one config file on this machine"),
        (b"_BASE_: worse.yaml", "could not determine a constructor"),
        (
            b"A: &a [1, 1]\nB: &b [*a, *a, *a]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (n + 1, n + 33, b", ".join([b"*%c" % (n + 32)] * 9))
                for n in range(66, 74)
            ),
            "aliases unfold to more than",
        ),
        (b"A: &a [*a]", "aliases unfold"),
        (b"[" * 5000, "recursion"),
        (b"1: 2", "1"),
        (b"SOLVER: 3", "SOLVER"),
        (b"A: !!python/object/apply:os.mkdir [executed]", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_config_is_one_sentence_and_not_executed(
    tmp_path, monkeypatch, content, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(content)
    (tmp_path / "worse.yaml").write_text("A: !!python/object/apply:os.mkdir [executed]")
    with pytest.raises(ValueError, match=r"^In .*(bad|worse|nowhere)\.yaml: ") as error:
        read_config(str(tmp_path / "bad.yaml"))
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
