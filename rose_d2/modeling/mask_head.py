"""The mask head: its contract, and SAM, built, loaded and saved, whose prompts are embeddings."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from segment_anything import sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.layers.masks import mask_coverage, resize_lines
from rose_d2.structures.patches import PatchPredictions
from rose_d2.structures.segments import BOX_SCALE, NormalisedBox

OFFICIAL = ("vit_h", "vit_l", "vit_b")
OFFICIAL_IMAGE_SIZE = 1024
# What SAM is shown of the region an instruction speaks of.
REGION_PROMPTS = ("none", "mask", "box", "mask_box")
# SAM's mask prompt holds logits of an earlier prediction. This one stands for a pixel that is
# surely inside; SAM's own confident logits lie between about 5 and 20.
_SURE_LOGIT = 8.0


@dataclass(frozen=True)
class MaskView:
    """What a mask head is told of an image besides its embedding.

    Attributes:
        size: (h, w) of the view given to `encode`.
        prior_mask: float (1, I, I), 0 or 1, in the language model's square view of the same image:
            the mask the instruction speaks of; None or zeros where it speaks of none.
        named_box: the box the instruction names, None for none.
    """

    size: tuple[int, int]
    prior_mask: torch.Tensor | None = None
    named_box: NormalisedBox | None = None

    @classmethod
    def of(cls, item: dict) -> MaskView:
        """Read one of `batched_inputs`."""
        return cls(view_size(item), item.get("prior_mask"), item.get("named_box"))


@dataclass(frozen=True)
class DrawnMasks:
    """Masks of K candidates of one image.

    Attributes:
        logits: (K, m, m), low resolution.
        quality: (K,) what the head thinks the mask's IoU with its object is, about 0 to 1.
        prior_quality: (K,) the same of the prior mask; without meaning where there is none.
    """

    logits: torch.Tensor
    quality: torch.Tensor
    prior_quality: torch.Tensor


class MaskHead(Protocol):
    """What a mask head offers; a registered class is an `nn.Module` and is called with (cfg)."""

    @property
    def prompt_dim(self) -> int:
        """E, width of the mask embeddings it takes."""

    def encode(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Image embeddings.

        Args:
            images: B uint8 or float tensors (3, h, w), RGB in 0..255.

        Returns:
            (B, E, g, g).
        """

    def decode(
        self,
        image_embeddings: torch.Tensor,
        predictions: list[PatchPredictions],
        views: list[MaskView],
    ) -> list[DrawnMasks]:
        """Masks of every image's candidates.

        Args:
            image_embeddings: (B, E, g, g).
            predictions: B times K_i candidates with their mask embeddings.
            views: of the B images.

        Returns:
            Of the B images; empty where K_i is 0.
        """

    def upscale(
        self, low_res_masks: torch.Tensor, input_size: tuple[int, int], output_size: tuple[int, int]
    ) -> LogitMasks:
        """Masks in the original image, drawn when they are looked at.

        Args:
            low_res_masks: (K, m, m) logits of `decode`.
            input_size: (h, w) of the view given to `encode`.
            output_size: (H, W) of the original image.
        """

    def targets(
        self, masks: torch.Tensor, input_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ground truth in the frame of the low-resolution logits.

        Args:
            masks: (N, I, I) bool, in the LMM's square view, which shows the same image.
            input_size: (h, w) of the view given to `encode`.

        Returns:
            (N, m, m) float in 0..1, and (m, m) bool, False where nothing is to be learned.
        """

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parameters by part; those that no output depends on are left out."""


MASK_HEAD_REGISTRY = Registry("ROSE_MASK_HEAD")
MASK_HEAD_REGISTRY.__doc__ = "Modules that draw masks from embeddings; `MaskHead` is the contract."


def build_mask_head(cfg: CfgNode) -> MaskHead:
    """Build MODEL.MASK_HEAD.NAME."""
    return MASK_HEAD_REGISTRY.get(cfg.MODEL.MASK_HEAD.NAME)(cfg)


def view_size(item: dict) -> tuple[int, int]:
    """The (h, w) of the view that `encode` is given of one of `batched_inputs`."""
    height, width = item["sam_image"].shape[-2:]
    return height, width


@MASK_HEAD_REGISTRY.register()
class SAMMaskHead(nn.Module):
    """Unmodified segment-anything; every embedding is one prompt and gives one mask.

    LISA's way of prompting (paper section 3.3, "as the text prompt"). SAM's decoder takes one
    image a call and fails on zero prompts; this head batches over images and returns an empty
    result for none.
    """

    @configurable
    def __init__(
        self,
        *,
        sam: Sam,
        pixel_mean: list[float],
        pixel_std: list[float],
        position_prompt: bool = False,
        region_prompt: str = "none",
        learns_quality: bool = False,
    ) -> None:
        """
        Args:
            sam: image encoder, prompt encoder and mask decoder.
            pixel_mean: per channel, RGB in 0..255.
            pixel_std: per channel.
            position_prompt: add SAM's own encoding of the patch's centre to its mask embedding,
                as SAM adds it to the embedding of a click.
            region_prompt: what SAM is shown, by its own prompts, of the region that the instruction
                speaks of, one of `REGION_PROMPTS`.
            learns_quality: the predicted qualities have a loss.

        Raises:
            ValueError: `region_prompt` is unknown.
        """
        super().__init__()
        if region_prompt not in REGION_PROMPTS:
            raise ValueError(
                f"MODEL.MASK_HEAD.REGION_PROMPT is {region_prompt!r}; choose one of "
                f"{', '.join(REGION_PROMPTS)}."
            )
        self.image_encoder = sam.image_encoder
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.position_prompt = position_prompt
        self.mask_prompt = region_prompt in ("mask", "mask_box")
        self.box_prompt = region_prompt in ("box", "mask_box")
        self.learns_quality = learns_quality
        self.image_size = sam.image_encoder.img_size
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "sam": build_sam(cfg),
            "pixel_mean": cfg.MODEL.MASK_HEAD.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.MASK_HEAD.PIXEL_STD,
            "position_prompt": cfg.MODEL.MASK_HEAD.POSITION_PROMPT,
            "region_prompt": cfg.MODEL.MASK_HEAD.REGION_PROMPT,
            "learns_quality": cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY > 0,
        }

    @property
    def prompt_dim(self) -> int:
        """E, width of a prompt embedding."""
        return self.prompt_encoder.embed_dim

    @property
    def mask_side(self) -> int:
        """Side of the low-resolution logits: four times the embedding grid."""
        return 4 * self.prompt_encoder.image_embedding_size[0]

    def encode(self, images: list[torch.Tensor]) -> torch.Tensor:
        """See `MaskHead.encode`.

        The longest side is at most the image size; views are padded right and bottom here, after
        normalisation, as SAM does.
        """
        views = torch.stack([self._pad(image.to(self.pixel_mean.device)) for image in images])
        dtype = self.image_encoder.patch_embed.proj.weight.dtype
        return self.image_encoder(views.to(dtype))

    def decode(
        self,
        image_embeddings: torch.Tensor,
        predictions: list[PatchPredictions],
        views: list[MaskView],
    ) -> list[DrawnMasks]:
        """See `MaskHead.decode`: logits in the padded frame."""
        return [
            self._decode_one(image[None], self._sparse(candidates, view), self._dense(view))
            for image, candidates, view in zip(image_embeddings, predictions, views, strict=True)
        ]

    def upscale(
        self, low_res_masks: torch.Tensor, input_size: tuple[int, int], output_size: tuple[int, int]
    ) -> LogitMasks:
        """See `MaskHead.upscale`: undoes padding and resizing, as `Sam.postprocess_masks`."""
        return LogitMasks(
            low_res_masks,
            *(
                self._upscaling(low_res_masks.shape[-1], view, image).to(low_res_masks.device)
                for view, image in zip(input_size, output_size, strict=True)
            ),
        )

    def targets(
        self, masks: torch.Tensor, input_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `MaskHead.targets`: only padding is not learned.

        The share of each logit's cell that the mask covers is the target, so that upscaled logits
        cross zero where the object ends, also between cells.
        """
        height, width = input_size
        padding = (0, self.image_size - width, 0, self.image_size - height)
        cell = self.image_size // self.mask_side
        targets = F.avg_pool2d(F.pad(mask_coverage(masks, input_size), padding), cell)
        inside = F.pad(torch.ones(1, height, width, device=masks.device), padding)
        return targets, F.avg_pool2d(inside, cell)[0] >= 0.5

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """See `MaskHead.parts`."""
        return {
            "sam_image_encoder": list(self.image_encoder.named_parameters()),
            "sam_prompt_encoder": [
                (name, parameter)
                for name, parameter in self.prompt_encoder.named_parameters()
                if name.startswith(self._used_prompts())
            ],
            # Of the masks per prompt, only the first is used.
            "sam_mask_decoder": [
                (name, parameter)
                for name, parameter in self.mask_decoder.named_parameters()
                if name.startswith("output_hypernetworks_mlps.0.")
                or not name.startswith(("iou_prediction_head.", "output_hypernetworks_mlps."))
                or (self.learns_quality and name.startswith("iou_prediction_head."))
            ],
        }

    def _used_prompts(self) -> tuple[str, ...]:
        """Prefixes of the prompt encoder's parameters that masks depend on."""
        masks = ("mask_downscaling.",) if self.mask_prompt else ()
        # Its embeddings of a click inside, a click outside and a box's two corners.
        boxes = ("point_embeddings.2.", "point_embeddings.3.") if self.box_prompt else ()
        return ("no_mask_embed.", *masks, *boxes)

    def _upscaling(self, low_res: int, view: int, image: int) -> torch.Tensor:
        """What each of `image` rows or columns of pixels takes of those of the logits, (H, m)."""
        padded = resize_lines(torch.eye(low_res, device="cpu"), self.image_size)
        return resize_lines(padded[:, :view], image).T

    def _pad(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        if max(height, width) > self.image_size:
            raise ValueError(
                f"SAM's view is {height} x {width}; resize its longest side to {self.image_size}."
            )
        normalised = (image.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return F.pad(normalised, (0, self.image_size - width, 0, self.image_size - height))

    def _sparse(self, candidates: PatchPredictions, view: MaskView) -> torch.Tensor:
        """Sparse prompts (K, 1, E), or (K, 3, E) with the corners of a box."""
        prompts = self._positioned(candidates, view.size)[:, None]
        if not self.box_prompt:
            return prompts
        corners = self._corners(view).expand(len(prompts), -1, -1)  # (K, 2, E)
        if view.named_box is None:
            return prompts + 0 * corners[:, :1]  # see `Supervisor`: every module runs
        return torch.cat([prompts, corners], dim=1)

    def _corners(self, view: MaskView) -> torch.Tensor:
        """SAM's embedding of the named box, (1, 2, E)."""
        height, width = view.size
        box = view.named_box or (0, 0, BOX_SCALE, BOX_SCALE)
        edges = torch.tensor([box], dtype=torch.float32, device=self.pixel_mean.device)
        edges = edges * edges.new_tensor([width, height, width, height]) / BOX_SCALE
        # In full precision, as positions are.
        with torch.autocast(edges.device.type, enabled=False):
            corners, _ = self.prompt_encoder(points=None, boxes=edges, masks=None)
        return corners

    def _dense(self, view: MaskView) -> torch.Tensor:
        """Dense prompt (1, E, g, g): the prior mask, or SAM's vector for none."""
        _, no_mask = self.prompt_encoder(points=None, boxes=None, masks=None)
        if not self.mask_prompt:
            return no_mask
        device, prior = self.pixel_mean.device, view.prior_mask
        has_prior = prior is not None and bool(prior.any())
        if prior is None:
            prior = torch.zeros(1, self.mask_side, self.mask_side, device=device)
        coverage, _ = self.targets(prior.to(device) > 0.5, view.size)  # (1, m, m)
        logits = _SURE_LOGIT * (2 * coverage[None] - 1)
        dtype = self.prompt_encoder.mask_downscaling[0].weight.dtype
        _, shown = self.prompt_encoder(points=None, boxes=None, masks=logits.to(dtype))
        return shown + 0 * no_mask if has_prior else no_mask + 0 * shown

    def _positioned(
        self, candidates: PatchPredictions, input_size: tuple[int, int]
    ) -> torch.Tensor:
        """Mask embeddings (K, E), with the places of their patches if SAM is told."""
        if not self.position_prompt:
            return candidates.mask_embeddings
        height, width = input_size
        points = candidates.centres * candidates.centres.new_tensor([width, height])
        square = (self.image_size, self.image_size)
        # In full precision: half of it would move the angles of the Fourier features.
        with torch.autocast(points.device.type, enabled=False):
            positions = self.prompt_encoder.pe_layer.forward_with_coords(points[None], square)[0]
        return candidates.mask_embeddings + positions

    def _image_positions(self) -> torch.Tensor:
        """Where each cell of the image embedding lies, (1, E, g, g), in full precision.

        In half of it the sines and cosines of large angles would be another position's.
        """
        with torch.autocast(self.pixel_mean.device.type, enabled=False):
            return self.prompt_encoder.get_dense_pe()

    def _apply(self, fn: Callable, recurse: bool = True) -> SAMMaskHead:
        """Move and cast as ever, but for the Fourier features' frequencies: they stay float32."""
        layer = self.prompt_encoder.pe_layer
        name = "positional_encoding_gaussian_matrix"
        before = getattr(layer, name)
        super()._apply(fn, recurse)
        after = getattr(layer, name)
        if after.dtype != before.dtype:
            setattr(layer, name, before.to(after.device))
        return self

    def _decode_one(
        self, image_embedding: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> DrawnMasks:
        if not len(sparse):
            side = self.mask_side
            none = image_embedding.new_zeros(0)
            return DrawnMasks(image_embedding.new_zeros(0, side, side), none, none)
        with outputs_of(self.mask_decoder.iou_prediction_head) as ratings:
            masks, _ = self.mask_decoder(
                image_embeddings=image_embedding,
                image_pe=self._image_positions().to(image_embedding.dtype),
                sparse_prompt_embeddings=sparse.to(image_embedding.dtype),
                dense_prompt_embeddings=dense.expand(len(sparse), -1, -1, -1),
                multimask_output=False,
            )
        # The head rates three more masks, which SAM draws where a prompt is ambiguous; none of them
        # is used here, and the rating of the first is learned for the prior mask.
        (quality,) = ratings
        return DrawnMasks(masks[:, 0], quality[:, 0], quality[:, 1])


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what a module returns while the block runs."""
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def build_sam(cfg: CfgNode) -> Sam:
    """Build MODEL.MASK_HEAD.SAM_ARCH and load MODEL.MASK_HEAD.SAM_CHECKPOINT if one is named.

    Raises:
        ValueError: for an unknown size, an image size the official models do not take, or
            weights that do not fit.
        FileNotFoundError: if the checkpoint does not exist.
    """
    head = cfg.MODEL.MASK_HEAD
    sam = _random_sam(head)
    if head.SAM_CHECKPOINT:
        _load(sam, Path(head.SAM_CHECKPOINT).expanduser())
    return sam


def check_sam_checkpoint(cfg: CfgNode) -> None:
    """Refuse what `build_sam` would, without memory for the weights.

    Raises:
        ValueError: see `build_sam`.
        FileNotFoundError: see there.
    """
    with torch.device("meta"), warnings.catch_warnings():
        sam = _random_sam(cfg.MODEL.MASK_HEAD)
        warnings.simplefilter("ignore", UserWarning)  # nothing is copied: that is the point
        _load(sam, Path(cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT).expanduser())


def _random_sam(head: CfgNode) -> Sam:
    if head.SAM_ARCH == "tiny":
        return build_sam_tiny(head.IMAGE_SIZE)
    if head.SAM_ARCH in OFFICIAL:
        if head.IMAGE_SIZE != OFFICIAL_IMAGE_SIZE:
            raise ValueError(
                f"MODEL.MASK_HEAD.IMAGE_SIZE is {head.IMAGE_SIZE}; SAM {head.SAM_ARCH} takes "
                f"{OFFICIAL_IMAGE_SIZE}."
            )
        return sam_model_registry[head.SAM_ARCH]()
    known = ", ".join((*OFFICIAL, "tiny"))
    raise ValueError(f"MODEL.MASK_HEAD.SAM_ARCH is {head.SAM_ARCH!r}; allowed are {known}.")


def build_sam_tiny(image_size: int) -> Sam:
    """SAM's own classes with small numbers, for CPUs.

    Args:
        image_size: side of the padded view in pixels, a multiple of 16.
    """
    grid = image_size // 16
    width = 64
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=16,
            embed_dim=128,
            depth=4,
            num_heads=4,
            out_chans=width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=8,
            # One local block, then global ones: clip-art is small and so is the grid.
            global_attn_indexes=(1, 2, 3),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=256, num_heads=4),
            transformer_dim=width,
            iou_head_depth=2,
            iou_head_hidden_dim=width,
        ),
    )


def save_sam(mask_head: nn.Module, path: Path) -> None:
    """Write image encoder, prompt encoder and mask decoder as segment-anything's own file.

    Args:
        mask_head: a `SAMMaskHead`.
        path: file to write, for MODEL.MASK_HEAD.SAM_CHECKPOINT.
    """
    # Copies: a checkpoint that holds views would hold the tensors they look into.
    state = {name: value.to("cpu", copy=True) for name, value in mask_head.state_dict().items()}
    torch.save(state, path)


def _load(sam: Sam, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"MODEL.MASK_HEAD.SAM_CHECKPOINT {path} does not exist; download SAM's weights, or "
            'set it to "" to start from random ones.'
        )
    # Mapped into memory, tensors that are not needed whole are not read whole.
    is_mapped = zipfile.is_zipfile(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # PyTorch reports foreign files with whatever its parsers meet
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} (MODEL.MASK_HEAD.SAM_CHECKPOINT) is no file that PyTorch can read without "
            f"running code from it ({first[:150]!r}); download it again."
        ) from error
    try:
        sam.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit MODEL.MASK_HEAD.SAM_ARCH: {error}") from error
