import json

import numpy as np
import torch
from pycocotools import mask as coco_mask

from rose_d2.structures.mask_codec import encode_masks


def test_masks_survive():
    masks = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    masks[1], masks[2] = False, True
    codes = encode_masks(masks)
    decoded = coco_mask.decode(json.loads(json.dumps(codes)))  # (H, W, N)
    assert np.array_equal(np.moveaxis(decoded, 2, 0), masks.numpy())


def test_it_is_the_code_of_pycocotools():
    masks = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    for mask, code in zip(masks, encode_masks(masks)):
        expected = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
        assert code == {"size": [6, 4], "counts": expected["counts"].decode()}


def test_no_masks():
    assert encode_masks(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
