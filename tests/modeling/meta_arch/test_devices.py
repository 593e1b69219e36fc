"""Everything that needs real values makes its tensors on the model's device, or says that it means
the CPU: run on the CPU while PyTorch's default device is one without data."""

import functools

import pytest
import torch
from detectron2.utils.events import EventStorage
from segment_anything.modeling import image_encoder

from rose_d2.modeling import supervision
from rose_d2.modeling.assignment import PatchAssigner
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.patches import PatchGrid
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank
from rose_d2.vocabulary.vocabulary import CategoryVocabulary

# What is small, read number by number, and meant for the CPU as a whole: who gets which object
# and which pairs count, where patches lie, and what is looked up of names and positions.
ON_THE_CPU = (
    (PatchAssigner, "__call__"),
    (supervision, "sample_pairs"),
    (supervision, "pair_weights"),
    (PatchGrid, "rows_and_columns"),
    (CategoryNames, "__getitem__"),
    (CategoryVocabulary, "map_names"),
    (TextEmbeddingBank, "__call__"),
    (image_encoder, "get_rel_pos"),  # segment-anything's own
)


def on_the_cpu(function):
    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


@pytest.fixture
def no_default(monkeypatch):
    """A context in which a tensor that is made without a device has no values."""
    for owner, name in ON_THE_CPU:
        monkeypatch.setattr(owner, name, on_the_cpu(getattr(owner, name)))
    return torch.device("meta")


def test_losses_and_gradients(tiny_model, make_input, no_default):
    model = tiny_model.train()
    items = [make_input(task) for task in ("instance", "referring", "semantic")]
    with EventStorage(), no_default:
        losses = model(items)
        sum(losses.values()).backward()
    assert {loss.device.type for loss in losses.values()} == {"cpu"}
    assert all(loss.isfinite() for loss in losses.values()), losses


@pytest.mark.parametrize("task", ["instance", "semantic", "panoptic", "referring", "refinement"])
@pytest.mark.parametrize("candidates", [None, ["dog", "red car"]])
def test_answers(tiny_model, make_input, no_default, task, candidates):
    item = make_input(task, **({} if candidates is None else {"candidates": candidates}))
    with torch.no_grad(), no_default:
        (output,) = tiny_model.eval()([item])
        masks = list(output["open_instances"].pred_masks)
    assert all(mask.device.type == "cpu" for mask in masks)
    assert len(output["open_instances"].pred_category_names) == len(masks)
