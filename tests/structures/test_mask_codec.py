import json

import numpy as np
import torch
from pycocotools import mask as coco_mask

from rose_d2.structures.mask_codec import (
    colours_to_ids,
    decode_mask,
    encode_mask,
    encode_masks,
    ids_to_colours,
)


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


def test_one_mask_is_coded_and_drawn_alike():
    mask = np.zeros((6, 4), dtype=bool)
    mask[1:3, 2:] = True
    code = encode_mask(mask)
    assert [code] == encode_masks(torch.from_numpy(mask)[None])
    assert np.array_equal(decode_mask(code, 6, 4), mask)
    assert not decode_mask(None, 6, 4).any() and decode_mask([], 6, 4).shape == (6, 4)


def test_ids_are_spelled_little_endian():
    ids = np.array([[1 + 2 * 256 + 3 * 65536, 0]])
    assert ids_to_colours(ids).tolist() == [[[1, 2, 3], [0, 0, 0]]]
    assert colours_to_ids(np.uint8([[[1, 2, 3], [255, 255, 255]]])).tolist() == [
        [1 + 2 * 256 + 3 * 65536, 256**3 - 1]
    ]
