"""Mask candidates by hand."""

import pytest
import torch
from detectron2.structures import Instances

from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.structures.category_names import CategoryNames
from rose_d2.vocabulary.vocabulary import MAPPING_RULES


@pytest.fixture
def make_candidates():
    """Build candidates from rows (score, name, class id, role, {columns: mask probability}).

    Masks are the same in every row of the image; columns that are not given have probability 0.
    `rules` adds what the mapping rules say, the class ids then being those of any rule.
    """

    def make(*rows, size=(2, 6), rules=None):
        logits = torch.full((len(rows), *size), -20.0)
        for index, (*_, columns) in enumerate(rows):
            for (left, right), probability in columns.items():
                logits[index, :, left:right] = torch.logit(torch.tensor(probability))
        classes = torch.tensor([row[2] for row in rows], dtype=torch.long)
        candidates = Instances(
            size,
            scores=torch.tensor([row[0] for row in rows]),
            pred_masks=LogitMasks(logits),
            pred_category_names=CategoryNames([row[1] for row in rows]),
            name_scores=torch.ones(len(rows)),
            pred_classes=classes,
            pred_roles=torch.tensor([row[3] for row in rows], dtype=torch.long),
            pred_patches=torch.arange(10, 10 + len(rows)),
        )
        if rules is not None:
            ids = [MAPPING_RULES.index(rule) for rule in rules]
            candidates.mapping_rules = torch.tensor(ids, dtype=torch.long)
            candidates.mapped_classes = classes
        return candidates

    return make
