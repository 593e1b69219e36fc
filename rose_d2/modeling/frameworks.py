"""The segmentation frameworks of the paper's Table 3: what draws masks, and who writes the names.

ROSE is "patch" with "decode": patches draw, and names are decoded from their embeddings, each on
its own. In the others the names stand in the response, one behind the other:

* "seg_stack" with "along_seg": `name <SEG>, name <SEG>.`, the state at every <SEG> draws;
* "seg_dense_stack" with "along_seg": `name <SEG><SEG><SEG>, ...`, several draw one target;
* "patch" with "along_region": patches draw as in ROSE, and the response is
  `<REGION> name, <REGION> name.`, the regions in the order of their patches.

The paper names these rows and prints no more of them (section 4.4); wording, order and the number
of <SEG> a target are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from rose_d2.layers.masks import mask_centre
from rose_d2.modeling.assignment import PatchAssignment
from rose_d2.modeling.backbone.lmm import LMMBackbone, LMMOutput
from rose_d2.modeling.category_decoder import DecodedNames, Writing
from rose_d2.modeling.patch_analyzer import MLP, PatchAnalyzer, build_patch_analyzer
from rose_d2.prompts.conversation import Conversation, EncodedPrompt
from rose_d2.prompts.instructions import region_response, seg_response
from rose_d2.prompts.tokenizer import REGION_TOKEN, SEG_TOKEN
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.patches import PatchGrid, PatchPredictions, QueryProposals

# MODEL.ROSE.SEGMENT_UNIT and CLASSIFY_UNIT.
FRAMEWORKS = (
    ("patch", "decode"),
    ("seg_stack", "along_seg"),
    ("seg_dense_stack", "along_seg"),
    ("patch", "along_region"),
)


@dataclass(frozen=True)
class Framework:
    """One row of Table 3.

    Attributes:
        segment_unit: MODEL.ROSE.SEGMENT_UNIT.
        classify_unit: MODEL.ROSE.CLASSIFY_UNIT.
        segs_per_target: <SEG> tokens a target has.

    Raises:
        ValueError: not one of `FRAMEWORKS`, or no <SEG> a target.
    """

    segment_unit: str = "patch"
    classify_unit: str = "decode"
    segs_per_target: int = 1

    def __post_init__(self) -> None:
        if (self.segment_unit, self.classify_unit) not in FRAMEWORKS:
            known = ", ".join(f"{unit!r} with {names!r}" for unit, names in FRAMEWORKS)
            raise ValueError(
                f"MODEL.ROSE.SEGMENT_UNIT {self.segment_unit!r} with CLASSIFY_UNIT "
                f"{self.classify_unit!r} is no row of Table 3; take {known}."
            )
        if self.segs_per_target < 1:
            raise ValueError(
                f"MODEL.ROSE.SEGS_PER_TARGET is {self.segs_per_target}; a target needs at least 1."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Framework:
        """Read MODEL.ROSE."""
        rose = cfg.MODEL.ROSE
        is_dense = rose.SEGMENT_UNIT == "seg_dense_stack"
        return cls(rose.SEGMENT_UNIT, rose.CLASSIFY_UNIT, rose.SEGS_PER_TARGET if is_dense else 1)

    @property
    def draws_by_patch(self) -> bool:
        """Whether patches draw the masks."""
        return self.segment_unit == "patch"

    @property
    def decodes_names(self) -> bool:
        """Whether names are decoded from embeddings."""
        return self.classify_unit == "decode"

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What the tokenizer has to know."""
        tokens = {"decode": (), "along_seg": (SEG_TOKEN,), "along_region": (REGION_TOKEN,)}
        return tokens[self.classify_unit]

    def conversation(self, item: dict, grid: PatchGrid) -> Conversation:
        """The conversation of an item, in training with the response of this framework.

        Args:
            item: one of `batched_inputs`.
            grid: patches of the view.
        """
        own = item["conversation"]
        if self.decodes_names or "instances" not in item:
            return own
        instances = item["instances"]
        names = [instances.gt_category_names[i] for i in self.order(instances, grid).tolist()]
        if self.draws_by_patch:
            return Conversation(own.instruction, region_response(names))
        return Conversation(own.instruction, seg_response(names, self.segs_per_target))

    def order(self, instances: Instances, grid: PatchGrid) -> Tensor:
        """In which order the response speaks of N objects: of their classes, or of their patches.

        Args:
            instances: with gt_classes and gt_masks, and gt_centres where they are known.
            grid: patches of the view.

        Returns:
            (N,) long.
        """
        if not self.draws_by_patch:
            return instances.gt_classes.argsort(stable=True)
        if instances.has("gt_centres"):
            centres = instances.gt_centres.tolist()
        else:
            centres = [mask_centre(mask) for mask in instances.gt_masks.tensor]
        patches = [grid.patch_of((x, y)) for x, y in centres]
        return torch.tensor(patches, dtype=torch.long).argsort(stable=True)


ROSE_FRAMEWORK = Framework()


class TokenAssigner:
    """Gives every <SEG> of a response its object; called as `PatchAssigner` is."""

    def __init__(self, framework: Framework, grid: PatchGrid) -> None:
        """
        Args:
            framework: one that stacks <SEG>.
            grid: patches of the view.
        """
        self.framework = framework
        self.grid = grid

    def __call__(
        self, instances: Instances, negative_points: Tensor, ignore_mask: Tensor
    ) -> PatchAssignment:
        """Assign one image's objects; what is not asked for has no token."""
        order = self.framework.order(instances, self.grid).cpu()
        objects = order.repeat_interleave(self.framework.segs_per_target)
        none = objects.new_empty(0)
        return PatchAssignment(torch.arange(len(objects)), objects, none, 0, none)


class SegTokenAnalyzer(nn.Module):
    """Candidates at the <SEG> tokens of the responses: a `PatchAnalyzer` without patches."""

    def __init__(
        self, seg_id: int, input_dim: int, hidden_dim: int, prompt_dim: int, siglip_dim: int
    ) -> None:
        """
        Args:
            seg_id: the token.
            input_dim: D, width of the language model's states.
            hidden_dim: width of the projectors' hidden layer.
            prompt_dim: E, width of the mask embeddings.
            siglip_dim: width of the SigLIP embeddings.
        """
        super().__init__()
        self.seg_id = seg_id
        self.mask = MLP(input_dim, hidden_dim, prompt_dim)
        self.siglip = MLP(input_dim, hidden_dim, siglip_dim)

    def propose(self, lmm_output: LMMOutput) -> QueryProposals:
        """The states at the <SEG> tokens of responses that were read, in training.

        Returns:
            Features padded to the longest response's number of tokens, at least 1; the scores say
            nothing.
        """
        is_seg = lmm_output.response_labels == self.seg_id
        states, images = lmm_output.response_states[is_seg], lmm_output.response_images[is_seg]
        rows = [states[images == index] for index in range(len(lmm_output.patch_features))]
        return padded_proposals(rows, [row.new_zeros(len(row)) for row in rows])

    def embed(
        self, proposals: QueryProposals, image_index: int, patches: Tensor
    ) -> PatchPredictions:
        """See `PatchAnalyzer.embed`; a token has no place, so all have the middle of the image."""
        features = proposals.features[image_index, patches].to(self.mask.layers[0].weight.dtype)
        return PatchPredictions(
            patches=torch.full_like(patches, -1),
            centres=torch.full((len(patches), 2), 0.5, device=patches.device),
            objectness_logits=proposals.objectness_logits[image_index, patches],
            mask_embeddings=self.mask(features),
            category_embeddings=features,
            siglip_embeddings=self.siglip(features),
        )


def padded_proposals(features: list[Tensor], logits: list[Tensor]) -> QueryProposals:
    """Candidates of B images as one batch.

    Args:
        features: B tensors (N_i, D).
        logits: B tensors (N_i,).

    Returns:
        With N candidates, the most an image has and at least one; padding has score 0.
    """
    count = max(1, *(len(row) for row in features))
    dim, device = features[0].shape[1], features[0].device
    padded = torch.stack(
        [torch.cat([row, row.new_zeros(count - len(row), dim)]) for row in features]
    )
    scores = torch.full((len(logits), count), -torch.inf, device=device)
    for row, values in zip(scores, logits, strict=True):
        row[: len(values)] = values
    return QueryProposals(padded, scores, None)


class StackWriter:
    """Writes the response of a stack freely, token by token, and keeps the state at each <SEG>."""

    def __init__(self, lmm: LMMBackbone, max_tokens: int) -> None:
        """
        Args:
            lmm: sees the image and writes.
            max_tokens: longest response.
        """
        self.lmm = lmm
        self.max_tokens = max_tokens
        self.seg_id = lmm.tokenizer.convert_tokens_to_ids(SEG_TOKEN)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, prior_masks: Tensor, prompts: list[EncodedPrompt]
    ) -> QueryProposals:
        """Candidates of B images, scored by the probability of their tokens.

        Args:
            images: (B, 3, I, I), RGB in 0..255.
            prior_masks: (B, 1, I, I), 0 or 1.
            prompts: B prompts.
        """
        written = [
            self._write(self.begin(image[None], mask[None], prompt))
            for image, mask, prompt in zip(images, prior_masks, prompts, strict=True)
        ]
        proposals = padded_proposals([w.states for w in written], [w.logits for w in written])
        proposals.names = lambda image, tokens: written[image].names[tokens]
        return proposals

    def begin(self, image: Tensor, prior_mask: Tensor, prompt: EncodedPrompt) -> Writing:
        """Read a prompt; see `Writing`."""
        return Writing(self.lmm, image, prior_mask, prompt)

    def _write(self, writing: Writing) -> _Stack:
        states, logits, names = [], [], []
        word: list[int] = []
        of_name: list[float] = []
        behind_target = False
        for _ in range(self.max_tokens):
            token, log_prob = writing.choose()
            if token == self.lmm.tokenizer.eos_token_id:
                break
            writing.read(token)
            if token != self.seg_id:
                if behind_target:
                    word, of_name, behind_target = [], [], False
                word.append(token)
                of_name.append(log_prob)
                continue
            behind_target = True
            score = math.fsum([*of_name, log_prob]) / (len(of_name) + 1)
            states.append(writing.state[0, 0])
            logits.append(_logit(math.exp(score)))
            names.append((spelled_name(self.lmm, word), math.fsum(of_name) / max(len(of_name), 1)))
        device = writing.state.device
        return _Stack(
            torch.stack(states) if states else writing.state.new_zeros(0, writing.state.shape[-1]),
            torch.tensor(logits, device=device),
            DecodedNames(
                CategoryNames(name for name, _ in names),
                torch.tensor([score for _, score in names], device=device),
            ),
        )


@dataclass(frozen=True)
class _Stack:
    """N candidates of one response: states (N, D), logits (N,) and names."""

    states: Tensor
    logits: Tensor
    names: DecodedNames


class RegionWriter:
    """Writes a name behind every <REGION>, the regions in the order of their patches."""

    def __init__(self, lmm: LMMBackbone, max_tokens: int) -> None:
        """
        Args:
            lmm: sees the image and writes.
            max_tokens: longest name.
        """
        self.lmm = lmm
        self.max_tokens = max_tokens
        tokenizer = lmm.tokenizer
        self.region_id = tokenizer.convert_tokens_to_ids(REGION_TOKEN)
        # What may stand behind a name, with and without the next region.
        ends = (tokenizer.encode(text, add_special_tokens=False)[0] for text in (",", "."))
        self.stop_ids = {self.region_id, tokenizer.eos_token_id, *ends}

    @torch.no_grad()
    def __call__(
        self, image: Tensor, prior_mask: Tensor, prompt: EncodedPrompt, patches: Tensor
    ) -> DecodedNames:
        """Names of K regions of one image.

        Args:
            image: (3, I, I), RGB in 0..255.
            prior_mask: (1, I, I), 0 or 1.
            prompt: of the question.
            patches: (K,) long, the regions' patches.
        """
        order = patches.argsort(stable=True).tolist()
        names, scores = [""] * len(order), torch.zeros(len(order), device=patches.device)
        if not order:
            return DecodedNames(CategoryNames(names), scores)
        writing = Writing(self.lmm, image[None], prior_mask[None], prompt)
        for place, region in enumerate(order):
            opening = REGION_TOKEN if place == 0 else f", {REGION_TOKEN}"
            for token in self.lmm.tokenizer.encode(opening, add_special_tokens=False):
                writing.read(token)
            names[region], scores[region] = self._name(writing)
        return DecodedNames(CategoryNames(names), scores)

    def _name(self, writing: Writing) -> tuple[str, float]:
        word: list[int] = []
        log_probs: list[float] = []
        while len(word) < self.max_tokens:
            token, log_prob = writing.choose()
            log_probs.append(log_prob)
            if token in self.stop_ids:
                break
            word.append(token)
            writing.read(token)
        return spelled_name(self.lmm, word), math.fsum(log_probs) / len(log_probs)


def build_proposer(
    cfg: CfgNode, framework: Framework, lmm: LMMBackbone, prompt_dim: int
) -> PatchAnalyzer:
    """What makes the candidates: MODEL.PATCH_ANALYZER.NAME, or for a stack its own.

    Args:
        cfg: the config.
        framework: of this config.
        lmm: the backbone, which knows the framework's tokens.
        prompt_dim: E, width of the mask head's prompt embeddings.
    """
    if framework.draws_by_patch:
        return build_patch_analyzer(cfg, lmm.output_shape()["patch_features"], prompt_dim)
    widths = cfg.MODEL.PATCH_ANALYZER
    return SegTokenAnalyzer(
        lmm.tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        lmm.hidden_size,
        widths.HIDDEN_DIM,
        prompt_dim,
        widths.SIGLIP_DIM,
    )


def build_writer(
    cfg: CfgNode, framework: Framework, lmm: LMMBackbone
) -> StackWriter | RegionWriter | None:
    """What writes names in the response at inference; None where they are decoded."""
    if framework.decodes_names:
        return None
    if framework.draws_by_patch:
        return RegionWriter(lmm, cfg.MODEL.CATEGORY_DECODER.MAX_TOKENS)
    return StackWriter(lmm, cfg.TEST.MAX_RESPONSE_TOKENS)


def spelled_name(lmm: LMMBackbone, tokens: list[int]) -> str:
    """A name as it stands in a list, without what divides it from the one before."""
    return lmm.tokenizer.decode(tokens, skip_special_tokens=True).strip(" ,.")


def _logit(probability: float) -> float:
    clamped = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(clamped / (1 - clamped))
