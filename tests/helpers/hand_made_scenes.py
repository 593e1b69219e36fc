"""Two hand-made scenes on disk in the official formats, registered with detectron2.

Scene 1 (40 x 60): sky above, grass below, two void columns at the right; a dog, a cat on the
border of both, a crowd of dogs. Scene 2 (50 x 30): grass, and two cats that touch.
"""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rose_d2.layers.masks import masks_to_boxes
from rose_d2.structures.category_names import CategoryNames
from rose_d2.vocabulary.vocabulary import MAPPING_RULES, counts_at

CLASSES = ["dog", "cat", "sky", "grass"]
# id: (contiguous class, is crowd); the ids are also those of the panoptic PNG.
SCENES = {
    1: {10: (2, 0), 11: (3, 0), 12: (0, 0), 13: (1, 0), 14: (0, 1)},
    2: {20: (3, 0), 21: (1, 0), 22: (1, 0)},
}


def _draw_ids():
    first = np.zeros((40, 60), dtype=np.int32)
    first[:20, :58], first[20:, :58] = 10, 11
    first[4:14, 6:26] = 12
    first[15:35, 30:42] = 13
    first[36:39, 2:20] = 14
    second = np.full((50, 30), 20, dtype=np.int32)
    second[5:45, 3:15], second[10:40, 15:28] = 21, 22
    return {1: first, 2: second}


def _rle(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _write_scene(root, image_id, ids):
    """Images and label files of one scene; returns (dataset dict parts, COCO annotations)."""
    Image.fromarray(np.zeros((*ids.shape, 3), dtype=np.uint8)).save(root / f"{image_id:06d}.jpg")
    colours = np.stack([ids % 256, ids // 256, ids * 0], axis=2).astype(np.uint8)
    Image.fromarray(colours).save(root / "panoptic" / f"{image_id:06d}.png")
    labels = np.full(ids.shape, 255, dtype=np.uint8)
    annotations, segments = [], []
    for segment_id, (class_id, crowd) in SCENES[image_id].items():
        mask = ids == segment_id
        if not crowd:
            labels[mask] = class_id
        box = masks_to_boxes(torch.from_numpy(mask)[None]).tensor[0].tolist()
        segments.append(
            {
                "id": segment_id,
                "category_id": class_id,
                "isthing": class_id < 2,
                "iscrowd": crowd,
                "area": int(mask.sum()),
            }
        )
        if class_id < 2:
            annotations.append(
                {
                    "id": segment_id,
                    "image_id": image_id,
                    "category_id": class_id,
                    "iscrowd": crowd,
                    "area": int(mask.sum()),
                    "bbox": BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": _rle(mask),
                }
            )
    Image.fromarray(labels).save(root / f"{image_id:06d}_labels.png")
    return segments, annotations


def _dataset_ids(entries):
    """Contiguous classes to the dataset's 1-based ids."""
    keys = [k for k in entries[0] if k not in ("bbox_mode", "isthing")]
    return [{**{k: e[k] for k in keys}, "category_id": e["category_id"] + 1} for e in entries]


def _write_jsons(root, scenes, all_ids):
    images = [
        {"id": i, "file_name": f"{i:06d}.jpg", "height": ids.shape[0], "width": ids.shape[1]}
        for i, ids in all_ids.items()
    ]
    things = [{"id": i + 1, "name": CLASSES[i]} for i in range(2)]
    instances = [a for _, annotations in scenes.values() for a in _dataset_ids(annotations)]
    (root / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": things})
    )
    panoptic = [
        {"image_id": i, "file_name": f"{i:06d}.png", "segments_info": _dataset_ids(segments)}
        for i, (segments, _) in scenes.items()
    ]
    categories = [{"id": i + 1, "name": n, "isthing": int(i < 2)} for i, n in enumerate(CLASSES)]
    (root / "panoptic.json").write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": categories})
    )


def _referring(dicts, annotations):
    """Two sentences for the dog, one for each cat."""
    sentences = [(1, 0, 100, 0), (1, 0, 100, 1), (1, 1, 101, 2), (2, 0, 200, 3), (2, 1, 201, 4)]
    return [
        {
            **dicts[image_id],
            "annotations": annotations[image_id],
            "target_indices": [target],
            "ref_id": ref_id,
            "sent_id": sent_id,
            "sentence": "it",
        }
        for image_id, target, ref_id, sent_id in sentences
    ]


@pytest.fixture
def scenes(tmp_path):
    """Names of the registered datasets, their dicts and the drawn ids."""
    (tmp_path / "panoptic").mkdir()
    all_ids = _draw_ids()
    written = {i: _write_scene(tmp_path, i, ids) for i, ids in all_ids.items()}
    _write_jsons(tmp_path, written, all_ids)
    common = {
        i: {
            "file_name": str(tmp_path / f"{i:06d}.jpg"),
            "image_id": i,
            "height": ids.shape[0],
            "width": ids.shape[1],
        }
        for i, ids in all_ids.items()
    }
    annotations = {i: entries for i, (_, entries) in written.items()}
    panoptic = {
        i: {"pan_seg_file_name": str(tmp_path / "panoptic" / f"{i:06d}.png"), "segments_info": s}
        for i, (s, _) in written.items()
    }
    labels = {i: {"sem_seg_file_name": str(tmp_path / f"{i:06d}_labels.png")} for i in all_ids}
    dicts = {
        "coco": [{**common[i], "annotations": annotations[i]} for i in all_ids],
        "sem_seg": [{**common[i], **labels[i], **panoptic[i]} for i in all_ids],
        "coco_panoptic_seg": [{**common[i], **panoptic[i]} for i in all_ids],
        "refcoco": _referring(common, annotations),
    }
    names = {kind: f"hand_made_{kind}" for kind in dicts}
    for kind, name in names.items():
        DatasetCatalog.register(name, lambda kind=kind: dicts[kind])
        MetadataCatalog.get(name).set(
            evaluator_type=kind,
            thing_classes=CLASSES[:2],
            stuff_classes=CLASSES,
            thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
            stuff_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2, 4: 3},
            ignore_label=255,
            panoptic_json=str(tmp_path / "panoptic.json"),
            panoptic_root=str(tmp_path / "panoptic"),
        )
    MetadataCatalog.get(names["coco"]).json_file = str(tmp_path / "instances.json")
    yield SimpleNamespace(names=names, dicts=dicts, ids=all_ids, root=tmp_path)
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_instances(ids, predictions):
    """Instances from rows of (mask bool (H, W), name, class id, score)."""
    masks = torch.zeros(len(predictions), *ids.shape, dtype=torch.bool)
    for mask, (drawn, *_) in zip(masks, predictions):
        mask.copy_(torch.as_tensor(drawn))
    boxes = masks_to_boxes(masks) if len(masks) else Boxes(torch.zeros(0, 4))
    return Instances(
        tuple(ids.shape),
        pred_masks=masks,
        pred_boxes=boxes,
        scores=torch.tensor([score for *_, score in predictions], dtype=torch.float32),
        pred_classes=torch.tensor([row[2] for row in predictions], dtype=torch.long),
        pred_category_names=CategoryNames([row[1] for row in predictions]),
    )


@pytest.fixture
def perfect(scenes):
    """Outputs that equal the ground truth, with the model's output keys, by image id."""
    outputs = {}
    for image_id, ids in scenes.ids.items():
        kept = {s: c for s, (c, crowd) in SCENES[image_id].items() if not crowd}
        rows = [(ids == s, CLASSES[c], c, 0.9 - 0.01 * s) for s, c in kept.items()]
        sem_seg = torch.full((len(CLASSES) + 1, *ids.shape), 0.0)
        sem_seg[-1] = 0.05
        for mask, _, class_id, _ in rows:
            sem_seg[class_id][torch.as_tensor(mask)] = 1.0
        segments = [
            {
                "id": s,
                "category_id": c,
                "isthing": c < 2,
                "category_name": CLASSES[c],
                "score": 0.9,
            }
            for s, c in kept.items()
        ]
        drawn = torch.as_tensor(np.where(np.isin(ids, list(kept)), ids, 0))
        outputs[image_id] = {
            "instances": make_instances(ids, rows),
            "sem_seg": sem_seg,
            "panoptic_seg": (drawn, segments),
        }
    return outputs


@pytest.fixture
def instances_from():
    """The function that makes Instances from hand-written rows."""
    return make_instances


@pytest.fixture
def evaluate(scenes):
    """Function that gives an evaluator the outputs of both scenes, by image id."""

    def run(evaluator, kind, outputs):
        evaluator.reset()
        for sample in scenes.dicts[kind]:
            evaluator.process([sample], [copy.deepcopy(outputs[sample["image_id"]])])
        return evaluator.evaluate()

    return run


@pytest.fixture
def name_rules():
    """Function that adds the rule of every prediction; the headline level is "synonym"."""

    def add(instances, rules):
        indices = [MAPPING_RULES.index(rule) for rule in rules]
        instances.mapped_classes = instances.pred_classes.clone()
        instances.mapping_rules = torch.tensor(indices, dtype=torch.long)
        counts = torch.tensor([counts_at(rule, "synonym") for rule in rules], dtype=torch.bool)
        instances.pred_classes = torch.where(counts, instances.pred_classes, -1)
        return instances

    return add


def draw_ellipse(rng, size):
    """A random ellipse, cut by the border; bool (H, W)."""
    centre, radius = rng.uniform(0, size, 2), rng.uniform(4, 14, 2)
    rows, columns = np.mgrid[: size[0], : size[1]]
    rows, columns = (rows - centre[0]) / radius[0], (columns - centre[1]) / radius[1]
    return rows**2 + columns**2 <= 1


@pytest.fixture(scope="session")
def random_instances():
    """Function (seed, images, classes) -> (COCO, results, images as plain arrays).

    Three of four objects are found, shifted by up to a pixel, some under another class; other
    predictions hit nothing; scores tie. Every sixth object is a crowd. Category ids are 3, 5, ...
    An image is ([(mask, class, is crowd)], [(mask, class, score)]).
    """

    def make(seed, num_images=8, num_classes=3, size=(40, 50)):
        rng = np.random.default_rng(seed)
        images, annotations, results = [], [], []
        for image_id in range(1, num_images + 1):
            objects, predictions = [], []
            for _ in range(rng.integers(0, 7)):
                mask, class_id = draw_ellipse(rng, size), int(rng.integers(num_classes))
                if not mask.any():
                    continue
                objects.append((mask, class_id, bool(rng.random() < 1 / 6)))
                if rng.random() < 3 / 4:
                    moved = np.roll(mask, rng.integers(-1, 2, 2), axis=(0, 1))
                    named = int(rng.integers(num_classes)) if rng.random() < 0.3 else class_id
                    predictions.append((moved, named, float(rng.integers(1, 20) / 20)))
            for _ in range(rng.integers(0, 4)):
                mask = draw_ellipse(rng, size)
                score = float(rng.integers(1, 20) / 20)
                predictions.append((mask, int(rng.integers(num_classes)), score))
            images.append((objects, predictions))
            for mask, class_id, crowd in objects:
                common = {"image_id": image_id, "category_id": 2 * class_id + 3}
                box = coco_mask.toBbox(_rle(mask)).tolist()
                entry = {"iscrowd": int(crowd), "area": int(mask.sum()), "bbox": box}
                entry |= {"id": len(annotations) + 1, "segmentation": _rle(mask)}
                annotations.append(common | entry)
            for mask, class_id, score in predictions:
                common = {"image_id": image_id, "category_id": 2 * class_id + 3}
                code = _rle(mask)
                box = coco_mask.toBbox(code).tolist()
                results.append(common | {"score": score, "segmentation": code, "bbox": box})
        truth = COCO()
        truth.dataset = {
            "images": [
                {"id": i + 1, "height": size[0], "width": size[1]} for i in range(num_images)
            ],
            "annotations": annotations,
            "categories": [{"id": 2 * c + 3, "name": str(c)} for c in range(num_classes)],
        }
        truth.createIndex()
        return truth, results, images

    return make
