"""Inference of a randomly initialised model: order, candidates and contents of the outputs."""

import dataclasses

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.modeling.inference import InferenceSettings
from rose_d2.prompts.tasks import TASKS
from rose_d2.structures.category_names import CategoryNames
from rose_d2.vocabulary.vocabulary import MAPPING_RULES

# Longer than CATEGORY_DECODER.MAX_TOKENS, with a period in its middle, the start of another.
CANDIDATES = ["dog", "red car", "St. Bernard dog, which saves people in the mountains", "dog house"]
FIELDS = {
    "pred_masks",
    "pred_boxes",
    "scores",
    "pred_classes",
    "pred_category_names",
    "name_scores",
    "pred_roles",
    "pred_patches",
}
MAPPING_FIELDS = {"mapped_classes", "mapping_rules"}


@pytest.fixture
def panoptic_dataset():
    """Name of a dataset whose classes a random model never spells by chance."""
    metadata = MetadataCatalog.get("rose_test_toy_panoptic")
    metadata.set(
        thing_classes=["dog", "red car"],
        stuff_classes=["dog", "red car", "grass"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
        evaluator_type="coco_panoptic_seg",
    )
    yield "rose_test_toy_panoptic"
    MetadataCatalog.remove("rose_test_toy_panoptic")


@pytest.fixture
def model(tiny_model):
    return change(tiny_model.eval(), score_thresh=0.0, panoptic_score_thresh=0.0)


def change(model, **settings):
    """Replace settings of inference."""
    model.inference.settings = dataclasses.replace(model.inference.settings, **settings)
    return model


def run(model, *inputs):
    with torch.no_grad():
        return model(list(inputs))


def spell(model, *names):
    """Let the decoder answer these names in turn, as often as needed; returns the tries it got."""
    generate = model.inference.category_decoder.generate
    tries = []

    def spelling(embeddings, trie=None):
        tries.append(trie)
        decoded = generate(embeddings, trie)
        count = len(decoded.names)
        decoded.names = CategoryNames([names[i % len(names)] for i in range(count)])
        return decoded

    model.inference.category_decoder.generate = spelling
    return tries


class TestCandidates:
    @pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
    def test_every_output_is_a_candidate(self, model, make_input, task):
        item = make_input(task, candidates=CANDIDATES, dataset_name=None)
        (output,) = run(model, item)
        names = set(output["open_instances"].pred_category_names)
        assert names and names <= set(CANDIDATES)
        decoder = model.inference.category_decoder
        assert decoder.candidate_trie(CANDIDATES).longest > decoder.max_tokens

    def test_each_image_has_candidates_of_its_own(self, model, make_input):
        tries = spell(model, "dog")
        lists = (["dog"], ["zebra", "sky"], ["dog"], ["dog"])
        outputs = run(model, *[make_input(candidates=names) for names in lists])
        # Images with the same ones are named together.
        assert [trie.names for trie in tries] == [(*names, "other") for names in lists[:2]]
        assert [len(output["open_instances"]) > 0 for output in outputs] == [
            True,
            False,
            True,
            True,
        ]

    def test_a_batch_is_named_as_its_images_are_alone(self, model, make_input):
        items = [make_input(), make_input("panoptic"), make_input("referring")]
        items.append(make_input(candidates=["dog", "zebra crossing"]))
        for item, together in zip(items, run(model, *items), strict=True):
            (alone,) = run(model, item)
            pairs = (o["open_instances"] for o in (alone, together))
            for names in zip(*(instances.pred_category_names for instances in pairs), strict=True):
                assert names[0] == names[1]
            torch.testing.assert_close(
                alone["open_instances"].name_scores, together["open_instances"].name_scores
            )

    def test_other_drops_out_unless_it_is_a_candidate_itself(self, model, make_input):
        spell(model, "other", "dog")
        (output,) = run(model, make_input(candidates=["dog"]))
        assert set(output["open_instances"].pred_category_names) == {"dog"}
        (output,) = run(model, make_input(candidates=["dog", "other"]))
        assert set(output["open_instances"].pred_category_names) == {"dog", "other"}

    def test_without_candidates_names_are_free(self, model, make_input):
        (output,) = run(model, make_input(dataset_name=None))
        assert not set(output["open_instances"].pred_category_names) & {*CANDIDATES, "other"}

    def test_a_referring_answer_does_not_depend_on_candidates(self, model, make_input):
        plain, given = run(
            model, make_input("referring"), make_input("referring", candidates=["zebra"])
        )
        assert torch.equal(plain["ref_seg"], given["ref_seg"])
        assert len(given["open_instances"]) == 1
        assert (
            plain["open_instances"].pred_category_names
            == given["open_instances"].pred_category_names
        )

    def test_a_refined_region_takes_one_of_the_candidates(self, model, make_input):
        seen = spell(model, "zebra")
        (output,) = run(model, make_input("refinement", candidates=["zebra", "dog"]))
        assert list(output["open_instances"].pred_category_names) == ["zebra"]
        # "other" is no way out, since there has to be an answer.
        assert seen[0].names == ("zebra", "dog")


class TestOutputs:
    @pytest.mark.parametrize(
        ("task", "fields"),
        [
            ("instance", FIELDS | MAPPING_FIELDS),
            ("panoptic", FIELDS | MAPPING_FIELDS),
            ("referring", FIELDS | {"mask_quality", "prior_quality"}),
        ],
    )
    def test_instances_carry_no_logits(self, model, make_input, task, fields):
        (output,) = run(model, make_input(task))
        assert set(output["open_instances"].get_fields()) == fields
        assert output["open_instances"].pred_masks.dtype == torch.bool

    def test_without_a_vocabulary_there_are_no_levels(self, model, make_input):
        for task in ("semantic", "panoptic", "instance"):
            (output,) = run(model, make_input(task, dataset_name=None))
            assert "levels" not in output and "sem_seg" not in output
            instances = output["instances"]
            assert instances is output["open_instances"] and len(instances) > 0
            assert set(instances.get_fields()) == FIELDS
            names = output["metadata"].thing_classes
            assert names is output["metadata"].stuff_classes and len(names) == len(set(names))
            classes = instances.pred_classes.tolist()
            assert [names[k] for k in classes] == list(instances.pred_category_names)

    def test_candidates_are_the_first_open_classes(self, model, make_input):
        spell(model, "dog", "zebra", "other")
        candidates = ["zebra", "sky", "dog"]
        (output,) = run(model, make_input(candidates=candidates, dataset_name=None))
        assert output["metadata"].thing_classes == candidates
        names = [candidates[k] for k in output["instances"].pred_classes]
        assert names == list(output["instances"].pred_category_names)
        assert set(names) == {"dog", "zebra"}

    def test_the_instances_of_a_dataset_are_its_things(self, model, make_input, panoptic_dataset):
        change(model, nms_thresh=1.0)
        spell(model, "dog", "grass", "blob", "red car")
        (output,) = run(model, make_input("panoptic", dataset_name=panoptic_dataset))
        names = list(output["open_instances"].pred_category_names)
        assert set(names) == {"dog", "grass", "blob", "red car"}
        known = [name for name in names if name in ("dog", "red car")]
        assert list(output["instances"].pred_category_names) == known
        assert output["metadata"] is MetadataCatalog.get(panoptic_dataset)
        (output,) = run(model, make_input())  # without stuff
        assert output["metadata"].get("stuff_classes", None) is None
        assert set(output["instances"].pred_category_names) == {"dog", "red car"}

    def test_panoptic_answers_know_the_stuff_of_instance_data(self, model, make_input):
        metadata = MetadataCatalog.get("rose_test_toy_instance")
        things = ["dog", "red car"]
        metadata.set(thing_classes=things, stuff_classes=[*things, "grass"], evaluator_type="coco")
        spell(model, "grass", "dog")
        try:
            item = make_input("panoptic", dataset_name="rose_test_toy_instance")
            (output,) = run(model, item)
        finally:
            MetadataCatalog.remove("rose_test_toy_instance")
        kinds = {(info["category_id"], info["isthing"]) for info in output["panoptic_seg"][1]}
        assert (2, False) in kinds <= {(2, False), (0, True)}
        assert set(output["instances"].pred_classes.tolist()) == {0}

    def test_classes_by_any_rule_and_at_the_headline_level(
        self, model, make_input, panoptic_dataset
    ):
        change(model, headline_level="exact", nms_thresh=1.0)
        spell(model, "Dogs", "grass", "blob")
        (output,) = run(model, make_input("panoptic", dataset_name=panoptic_dataset))
        instances = output["open_instances"]
        assert len(instances) >= 3
        expected = {
            "Dogs": (0, "normalised", -1),
            "grass": (2, "exact", 2),
            "blob": (-1, "unmapped", -1),
        }
        for index, name in enumerate(instances.pred_category_names):
            mapped, rule, headline = expected[name]
            assert int(instances.mapped_classes[index]) == mapped
            assert MAPPING_RULES[int(instances.mapping_rules[index])] == rule
            assert int(instances.pred_classes[index]) == headline

    def test_the_headline_is_one_of_the_levels(self, model, make_input, panoptic_dataset):
        spell(model, "Dogs", "grass", "blob")
        inputs = [
            make_input(task, dataset_name=panoptic_dataset) for task in ("panoptic", "semantic")
        ]
        for level in ("exact", "synonym"):
            change(model, headline_level=level)
            panoptic, semantic = run(model, *inputs)
            levels = panoptic["levels"]
            assert list(levels)[:3] == ["exact", "normalised", "synonym"]
            assert panoptic["panoptic_seg"] is levels[level]["panoptic_seg"]
            labels = semantic["levels"][level]["sem_seg_labels"]
            assert labels.shape == (96, 128) and labels is semantic["sem_seg_labels"]
            best, classes = semantic["sem_seg"].max(dim=0)
            found = best >= semantic["non_object_score"]
            assert torch.equal(labels.long(), torch.where(found, classes, 3))
            assert len(semantic["sem_seg"]) == 3
            assert levels["normalised"] is levels["synonym"] is not levels["exact"]
            assert semantic["levels"]["normalised"] is semantic["levels"]["synonym"]

    def test_predicted_embeddings_reach_the_vocabulary_only_if_asked(self, model, make_input):
        class Recorder:
            seen = None
            wants_embeddings = False
            is_thing = ()

            def map_names(self, names, embeddings=None):
                self.seen = embeddings
                return torch.full((len(names),), -1), ["unmapped"] * len(names)

        recorder = Recorder()
        model.inference._make_vocabulary = lambda metadata: recorder
        run(model, make_input())
        assert recorder.seen is None
        recorder.wants_embeddings = True
        (output,) = run(model, make_input())
        assert recorder.seen.shape == (len(output["open_instances"]), 16)


class TestOrder:
    @pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
    def test_leaving_out_candidates_early_changes_no_output(
        self, model, make_input, task, monkeypatch, panoptic_dataset
    ):
        scores = run(model, make_input())[0]["open_instances"].scores
        middle = float(scores.sort().values[len(scores) // 2])
        change(model, score_thresh=middle, non_object_score=middle, panoptic_score_thresh=middle)
        spell(model, "Dogs")
        item = make_input(task, dataset_name=panoptic_dataset)
        (early,) = run(model, item)
        monkeypatch.setattr(InferenceSettings, "objectness_floor", lambda *_: 0.0)
        (late,) = run(model, item)
        assert 0 < len(early["open_instances"]) < len(scores)
        assert (
            early["open_instances"].pred_patches.tolist()
            == late["open_instances"].pred_patches.tolist()
        )
        if task == "semantic":
            assert torch.equal(early["sem_seg_labels"], late["sem_seg_labels"])
        if task == "panoptic":
            assert torch.equal(early["panoptic_seg"][0], late["panoptic_seg"][0])

    def test_masks_are_compared_before_they_are_named(self, model, make_input):
        def named():
            counts = []
            decoder = model.inference.category_decoder
            generate = type(decoder).generate.__get__(decoder)
            decoder.generate = lambda rows, trie=None: (
                counts.append(len(rows)) or generate(rows, trie)
            )
            run(model, make_input())
            return counts[0]

        change(model, nms_thresh=0.0)
        agnostic = named()
        change(model, nms_class_aware=True)
        assert agnostic < named() == 36

    def test_class_aware_suppression_keeps_other_names(self, model, make_input):
        change(model, nms_thresh=0.0, nms_class_aware=True)
        spell(model, "dog")
        (one,) = run(model, make_input())
        del model.inference.category_decoder.generate
        spell(model, *[f"dog {number}" for number in range(36)])
        (many,) = run(model, make_input())
        assert len(one["open_instances"]) < len(many["open_instances"])


@pytest.fixture
def settings(tiny_cfg):
    return InferenceSettings.from_config(tiny_cfg)


def test_settings_are_the_test_keys(tiny_cfg):
    tiny_cfg.TEST.NMS.LONGEST_SIDE = 99
    tiny_cfg.TEST.VOCABULARY.LEVEL = "exact"
    settings = InferenceSettings.from_config(tiny_cfg)
    assert (settings.top_k, settings.score_thresh, settings.nms_thresh) == (100, 0.05, 0.6)
    assert (settings.nms_longest_side, settings.headline_level) == (99, "exact")


@pytest.mark.parametrize(
    ("task", "changes", "floor"),
    [
        ("instance", {"score_thresh": 0.3, "non_object_score": 0.1}, 0.3),
        ("semantic", {"score_thresh": 0.3, "non_object_score": 0.1}, 0.1),
        ("semantic", {"score_thresh": 0.05, "non_object_score": 0.1}, 0.05),
        # Many candidates below the score of "no object" may together exceed it.
        ("semantic", {"score_thresh": 0.3, "semantic_merge": "sum"}, 0.0),
        ("panoptic", {"score_thresh": 0.3, "panoptic_score_thresh": 0.2}, 0.2),
        ("panoptic", {"score_thresh": 0.05, "panoptic_score_thresh": 0.5}, 0.05),
        ("referring", {"score_thresh": 0.3, "non_object_score": 0.1}, 0.3),
    ],
)
def test_candidates_without_a_trace_are_left_out(settings, task, changes, floor):
    assert dataclasses.replace(settings, **changes).objectness_floor(TASKS[task]) == floor


def test_every_setting_is_its_own_key(tiny_cfg):
    expected = InferenceSettings(
        top_k=11,
        top_k_stuff=2,
        score_thresh=0.13,
        nms_thresh=0.14,
        nms_class_aware=True,
        nms_longest_side=15,
        non_object_score=0.16,
        semantic_merge="sum",
        panoptic_score_thresh=0.17,
        panoptic_overlap_thresh=0.18,
        multi_target=True,
        change_margin=0.19,
        headline_level="exact",
    )
    keys = ("TOP_K", "TOP_K_STUFF", "SCORE_THRESH", "NMS.THRESH", "NMS.CLASS_AWARE")
    keys += ("NMS.LONGEST_SIDE", "SEMANTIC.NON_OBJECT_SCORE", "SEMANTIC.MERGE")
    keys += ("PANOPTIC.SCORE_THRESH", "PANOPTIC.OVERLAP_THRESH", "REFERRING.MULTI_TARGET")
    keys += ("REFINEMENT.CHANGE_MARGIN", "VOCABULARY.LEVEL")
    values = dataclasses.astuple(expected)
    for key, value in zip(keys, values, strict=True):
        tiny_cfg.merge_from_list([f"TEST.{key}", value])
    assert InferenceSettings.from_config(tiny_cfg) == expected


class TestChanges:
    """Which pixels of a mask a second turn changes."""

    def test_only_what_surely_differs_changes(self, model, make_input, monkeypatch):
        prior = torch.zeros(1, 84, 84)
        prior[:, :, :42] = 1  # the left half of 96 x 128
        full = torch.zeros(96, 128, dtype=torch.bool)
        full[:, :64] = True
        full[9, 9] = False  # a detail SAM cannot see
        probabilities = torch.full((1, 96, 128), 0.9)  # the answer: all of the upper part,
        probabilities[:, 48:] = 0.4  # and rather nothing of the lower
        upscale = model.mask_head.upscale

        def answer(masks, *sizes):
            """The answer in place of what is drawn; the mask to be repaired as ever."""
            is_drawn = masks.min() < 0
            if not is_drawn:
                return upscale(masks, *sizes)
            return LogitMasks(probabilities.logit().expand(len(masks), -1, -1))

        monkeypatch.setattr(model.mask_head, "upscale", answer)
        item = make_input("refinement", prior_mask=prior, full_prior=full)
        (anew,) = run(model, item)
        assert torch.equal(anew["ref_seg"], probabilities[0] > 0.5)
        change(model, change_margin=0.5)
        (changed,) = run(model, item)
        # Away from the edges of the mask, which are blurred.
        upper, lower = (slice(4, 44), slice(0, 52)), (slice(52, 84), slice(0, 52))
        assert changed["ref_seg"][4:44, 76:].all()  # 0.9 against 0
        assert torch.equal(changed["ref_seg"][upper], full[upper])  # 0.9 against 1
        assert not changed["ref_seg"][lower].any()  # 0.4 against 1
        change(model, change_margin=0.7)
        (careful,) = run(model, item)
        assert careful["ref_seg"][lower].all()


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor):
                self.nbytes = max(self.nbytes, value.untyped_storage().nbytes())
        return output


@pytest.mark.parametrize("merge", ["max", "sum"])
@pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
def test_memory_does_not_grow_with_masks_times_pixels(model, make_input, task, merge):
    change(model, semantic_merge=merge, nms_thresh=1.0, nms_longest_side=64)
    item = make_input(task, height=1500, width=2000)
    with LargestTensor() as largest:
        (output,) = run(model, item)
    assert len(output["open_instances"]) >= 30
    assert largest.nbytes <= 4 * 1500 * 2000
