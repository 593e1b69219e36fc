"""The other frameworks of Table 3: they train, write what they mean, and are scored like ROSE."""

import dataclasses

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rose_d2.evaluation.object_counts import counted_passes
from rose_d2.modeling.category_decoder import Writing
from rose_d2.modeling.frameworks import FRAMEWORKS, Framework, padded_proposals
from rose_d2.prompts.instructions import NOTHING_FOUND, region_response, seg_response
from rose_d2.prompts.tokenizer import REGION_TOKEN, SEG_TOKEN

OTHERS = FRAMEWORKS[1:]
STACKS = FRAMEWORKS[1:3]
TASKS = ("instance", "semantic", "panoptic", "referring", "refinement")


def build(cfg, units):
    cfg.MODEL.ROSE.SEGMENT_UNIT, cfg.MODEL.ROSE.CLASSIFY_UNIT = units
    torch.manual_seed(0)
    return build_model(cfg)


def train_step(model, items):
    with EventStorage():
        return model.train()(items)


def asked(item):
    return {key: value for key, value in item.items() if key != "instances"}


@pytest.fixture
def trained_model(tiny_cfg, make_input):
    """Build a model of a framework that knows one scene by heart."""

    def train(units):
        model = build(tiny_cfg, units)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0
        )
        for _ in range(250):
            optimizer.zero_grad()
            sum(train_step(model, [make_input()]).values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.eval()

    return train


def test_only_rows_of_the_table_are_built(tiny_cfg):
    for units in (("seg_stack", "decode"), ("patch", "along_seg"), ("pixel", "decode")):
        with pytest.raises(ValueError, match="is no row of Table 3; take 'patch' with 'decode'"):
            build(tiny_cfg, units)
    with pytest.raises(ValueError, match="SEGS_PER_TARGET is 0"):
        Framework("seg_dense_stack", "along_seg", 0)


def test_responses_list_names_and_tokens():
    names = ["dog", "red car", ""]
    assert seg_response(names) == "dog <SEG>, red car <SEG>, <SEG>."
    assert seg_response(names[:2], 2) == "dog <SEG><SEG>, red car <SEG><SEG>."
    assert region_response(names) == "<REGION> dog, <REGION> red car, <REGION>."
    assert seg_response([]) == region_response([]) == NOTHING_FOUND


@pytest.mark.parametrize("units", OTHERS)
def test_targets_are_said_in_the_order_of_the_framework(tiny_cfg, make_input, units):
    """By class in a stack, by place where patches draw; the model's tokens are whole."""
    model = build(tiny_cfg, units)
    item = make_input()
    item["instances"].gt_classes = torch.tensor([1, 0])
    said = model.framework.conversation(item, model.backbone.grid).response
    assert (
        said
        == {
            "seg_stack": "red car <SEG>, dog <SEG>.",
            "seg_dense_stack": "red car <SEG><SEG><SEG>, dog <SEG><SEG><SEG>.",
            "patch": "<REGION> dog, <REGION> red car.",
        }[units[0]]
    )
    tokenizer = model.backbone.tokenizer
    token = tokenizer.convert_tokens_to_ids(SEG_TOKEN if units in STACKS else REGION_TOKEN)
    assert tokenizer.encode(said).count(token) == said.count("<")
    assert token < model.backbone.model.lm_head.weight.shape[0]


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_has_a_row_in_embedding_and_output_layer(tiny_cfg, tied):
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.tie_word_embeddings = tied
    rows = build_model(tiny_cfg).backbone.model.lm_head.weight.shape[0]
    lmm = build(tiny_cfg, STACKS[0]).backbone
    assert lmm.is_tied == tied
    assert lmm.model.lm_head.weight.shape[0] == rows + 1 == len(lmm.tokenizer)
    assert lmm.embed_tokens(torch.tensor([rows])).shape == (1, lmm.hidden_size)
    # Where there is room, as in Qwen2's, nothing is resized.
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.vocab_size = rows + 8
    roomy = build(tiny_cfg, STACKS[0]).backbone
    assert roomy.model.lm_head.weight.shape[0] == rows + 8


@pytest.mark.parametrize("units", OTHERS)
def test_exactly_the_trained_parameters_get_a_gradient(tiny_cfg, make_input, units):
    model = build(tiny_cfg, units)
    nothing = make_input(instances=make_input()["instances"][:0])
    for items in ([make_input(), make_input("referring")], [nothing]):
        model.zero_grad(set_to_none=True)
        losses = train_step(model, items)
        sum(losses.values()).backward()
        with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}
        assert losses["loss_category"] == 0  # names are text
        assert (losses["loss_objectness"] == 0) == (units in STACKS)
    assert losses["loss_mask_bce"] == 0


@pytest.mark.parametrize("units", STACKS)
def test_what_is_written_freely_equals_what_was_read_in_training(tiny_cfg, make_input, units):
    """The candidates of a response that is written are those of the same response given."""
    model = build(tiny_cfg, units).eval()
    item = make_input()
    images, priors, (prompt,) = model._lmm_inputs([item])
    with torch.no_grad():
        given = model.patch_analyzer.propose(model.backbone(images, priors, [prompt]))
        words = iter(prompt.response)
        choose = Writing.choose

        def dictated(writing):
            """Writes the response that was given, at the probability it has."""
            token = next(words)
            logits = writing._lmm.logits(writing.state)[0, 0, : len(model.backbone.tokenizer)]
            return token, float(logits.log_softmax(dim=0)[token])

        Writing.choose = dictated
        try:
            with counted_passes(model.backbone) as passes:
                written = model.writer(images, priors, [prompt])
        finally:
            Writing.choose = choose
    torch.testing.assert_close(written.features, given.features, atol=1e-4, rtol=1e-4)
    assert passes == ["read_prompt"] + ["run_text"] * (len(prompt.response) - 1)
    count = written.features.shape[1] // 2
    names = written.names(0, torch.arange(2 * count)).names
    assert list(names) == ["dog"] * count + ["red car"] * count
    assert ((written.objectness_logits > -14) & (written.objectness_logits < 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("units", OTHERS)
def test_a_scene_known_by_heart_is_drawn_and_named(trained_model, make_input, units):
    model = trained_model(units)
    item = asked(make_input())
    with torch.no_grad():
        (output,) = model([item])
    found = output["open_instances"]
    found = found[found.scores > 0.5]
    assert sorted(found.pred_category_names) == ["dog", "red car"]
    for name, mask in zip(found.pred_category_names, found.pred_masks, strict=True):
        x, y = {"dog": (32, 24), "red car": (76, 73)}[name]  # of 128 x 96
        assert mask[y, x] and 0.02 < mask.float().mean() < 0.4


@pytest.mark.parametrize("units", OTHERS)
def test_all_tasks_are_answered_in_the_form_of_rose(tiny_cfg, make_input, units):
    tiny_cfg.TEST.MAX_RESPONSE_TOKENS = 20
    rose = build(tiny_cfg, FRAMEWORKS[0]).eval()
    other = build(tiny_cfg, units).eval()
    items = [asked(make_input(task)) for task in TASKS]
    items.append(asked(make_input("refinement", answer_box=(0, 0, 300, 300))))
    with torch.no_grad():
        for expected, output in zip(rose(items), other(items), strict=True):
            assert output.keys() == expected.keys()
            fields = output["open_instances"].get_fields().keys()
            assert fields == expected["open_instances"].get_fields().keys()
            assert output["open_instances"].pred_masks.shape[1:] == (96, 128)


def test_regions_are_named_in_the_order_of_their_patches(tiny_cfg, make_input, monkeypatch):
    model = build(tiny_cfg, ("patch", "along_region")).eval()
    tokenizer = model.backbone.tokenizer
    written = [tokenizer.encode(text) for text in (" dog,", " cat.", " cow", "")]
    end = tokenizer.eos_token_id
    words = iter([t for ids in written[:2] for t in ids] + written[2] + [end] + [end])
    monkeypatch.setattr(Writing, "choose", lambda writing: (next(words), -0.5))
    read = []
    monkeypatch.setattr(Writing, "read", lambda writing, token: read.append(token))
    images, priors, prompts = model._lmm_inputs([asked(make_input())])
    named = model.writer(images[0], priors[0], prompts[0], torch.tensor([30, 2, 17, 35]))
    assert list(named.names) == ["cow", "dog", "cat", ""]  # from left to right: 2, 17, 30, 35
    assert named.scores.tolist() == [-0.5] * 4
    said = tokenizer.decode(read)
    assert said == "<REGION> dog, <REGION> cat, <REGION> cow, <REGION>"


def test_a_written_name_that_is_no_candidate_drops_out(tiny_cfg, make_input, monkeypatch):
    model = build(tiny_cfg, STACKS[0]).eval()
    words = iter(model.backbone.tokenizer.encode("dog <SEG>, cow <SEG>, dog <SEG>"))
    end = model.backbone.tokenizer.eos_token_id
    monkeypatch.setattr(Writing, "choose", lambda writing: (next(words, end), -0.1))
    model.inference.settings = dataclasses.replace(model.inference.settings, nms_thresh=1.0)
    with torch.no_grad():
        (output,) = model([asked(make_input(candidates=["dog"]))])
    assert list(output["instances"].pred_category_names) == ["dog", "dog"]


def test_padding_is_never_chosen():
    rows = [torch.ones(1, 4), torch.ones(3, 4), torch.ones(0, 4)]
    proposals = padded_proposals(rows, [torch.zeros(len(row)) for row in rows])
    assert proposals.features.shape == (3, 3, 4)
    assert (proposals.objectness_logits.sigmoid() > 0).sum(dim=1).tolist() == [1, 3, 0]
