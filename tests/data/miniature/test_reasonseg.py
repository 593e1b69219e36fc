import json

import numpy as np

from rose_d2.data.datasets.reasonseg import load_reasonseg
from rose_d2.evaluation.ground_truth import ReferringTarget
from rose_d2.synthetic.miniature_coco import miniature_scene
from rose_d2.synthetic.miniature_refer import REASONSEG_SPLIT_IMAGES, write_reasonseg


def test_every_split_has_its_images_and_oddities(tmp_path):
    write_reasonseg(tmp_path)
    for split, image_ids in REASONSEG_SPLIT_IMAGES.items():
        folder = tmp_path / "ReasonSeg" / split
        assert {path.name for path in folder.iterdir()} == {
            f"{image_id}.{ending}" for image_id in image_ids for ending in ("jpg", "json")
        }
        for image_id in image_ids:
            annotation = json.loads((folder / f"{image_id}.json").read_bytes().decode("cp1252"))
            assert len(annotation["text"]) == 2
            assert {s["label"] for s in annotation["shapes"]} == {"target", "ignore", "flag"}


def test_the_loader_reads_back_the_object_of_the_scene(tmp_path):
    write_reasonseg(tmp_path)
    records = load_reasonseg(tmp_path / "ReasonSeg" / "val", all_texts=False)
    for image_id, record in zip(REASONSEG_SPLIT_IMAGES["val"], records, strict=True):
        thing = miniature_scene(image_id).objects[0]
        target = ReferringTarget(record)
        assert thing.name in record["sentence"]
        overlap = np.logical_and(target.mask, thing.mask).sum()
        assert overlap / np.logical_or(target.mask, thing.mask).sum() > 0.9
        assert target.ignore.any()
        assert not (target.mask & target.ignore).any()
