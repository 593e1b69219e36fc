from toy_training import toy_config

from rose_d2.engine.provenance import config_hash, file_sha256, library_versions


def test_hash_depends_on_what_is_computed_only(tmp_path):
    same = toy_config(tmp_path / "b", "DATALOADER.NUM_WORKERS", 7, "MODEL.WEIGHTS", "x")
    assert config_hash(toy_config(tmp_path / "a")) == config_hash(same)
    other = toy_config(tmp_path / "a", "SOLVER.BASE_LR", 0.1)
    assert config_hash(toy_config(tmp_path / "a")) != config_hash(other)


def test_file_sha256_is_the_known_value(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(str(tmp_path / "file")) == expected


def test_versions_name_the_main_libraries():
    assert {"python", "torch", "transformers"} <= set(library_versions())
