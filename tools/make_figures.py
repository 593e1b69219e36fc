r"""Draw the paper's figures with a model of your own, on pictures of your own.

    python tools/make_figures.py 3                                # everything in six looks
    python tools/make_figures.py 3 --input photos/*.jpg --model output/rose_7b
    python tools/make_figures.py all --output output/figures

    3  everything in pictures of several domains, named freely
    4  the three ways to show a mask that is to be repaired (Table 6), side by side
    5  the roles of patches in super-patches, and which patches learn which object
    6  image, truth, first answer, and the answer after a conversation about its mistakes
    7  objects that are described in words

Without --input the pictures are clip-art scenes no split contains, for figure 3 also in grey, as a
negative, as a pencil drawing, dark, and coarse: looks that the shipped model has never seen. The
figures need annotations for 4 to 7, so only 3 takes pictures of yours.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.structures import BitMasks, Instances

from rose_d2 import Rose
from rose_d2.command_line import make_parser, run_main
from rose_d2.data.image_io import read_image
from rose_d2.data.mask_corruption import holes_and_patches
from rose_d2.files import whole_file
from rose_d2.layers.views import model_views
from rose_d2.modeling.meta_arch.rose import PROMPT_FORMS, RefinementPrompt
from rose_d2.modeling.patch_analyzer import ROLES
from rose_d2.predictor.session import RoseSession
from rose_d2.refinement.regions import mask_in_view
from rose_d2.structures.segments import Segment
from rose_d2.synthetic.clipart import compose_sample
from rose_d2.synthetic.expressions import draw_references
from rose_d2.synthetic.scene import Scene
from rose_d2.visualization.sheets import contact_sheet
from rose_d2.visualization.visualizer import RoseVisualizer

# RGB by role: small, medium, large, stuff, any.
ROLE_COLOURS = ((214, 69, 65), (245, 176, 65), (52, 152, 219), (46, 160, 90), (150, 150, 150))
PANEL = 480  # pixels
FEWEST_PIXELS = 80  # of an object that is asked for
GOOD_IOU = 0.9  # an answer above it is not talked about


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument("figure", choices=[*FIGURES, "all"], help="number in the paper")
    parser.add_argument(
        "--model", default="tiny", help="what Rose.from_pretrained takes (default: %(default)s)"
    )
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="FILE", help="pictures of figure 3"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the clip-art scenes (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/figures"), help="default: %(default)s"
    )
    args = parser.parse_args(arguments)
    if args.input and args.figure != "3":
        parser.error("--input is for figure 3; the others need annotated scenes")
    return args


def cross_domain(rose: Rose, args: argparse.Namespace) -> np.ndarray:
    """Figure 3: pictures above, everything in them below."""
    if args.input:
        named = [(Path(path).name, read_image(path)) for path in args.input]
    else:
        scenes = [compose_sample(args.seed, number) for number in range(len(LOOKS))]
        named = [
            (look, change(scene.image))
            for (look, change), scene in zip(LOOKS.items(), scenes, strict=True)
        ]
    pictures = [image for _, image in named]
    answers = [rose(image).plot() for image in pictures]
    captions = [name for name, _ in named] + [""] * len(named)
    return contact_sheet([*pictures, *answers], captions, columns=len(named), cell=PANEL)


def prompt_forms(rose: Rose, args: argparse.Namespace) -> np.ndarray:
    """Figure 4: what the language model sees of a mask, in each form."""
    scene = compose_sample(args.seed, 0)
    mask = max(scene.objects, key=lambda thing: thing.area).mask
    damaged = holes_and_patches(mask, np.random.default_rng(args.seed), (0.6, 0.8))
    side = rose.cfg.MODEL.LMM.IMAGE_SIZE
    view, _ = model_views(scene.image, side, side)
    prior = mask_in_view(torch.from_numpy(damaged), side)[None, None].float()
    shown = [RefinementPrompt(form)(view[None], prior) for form in PROMPT_FORMS]
    panels = [_picture(pixels[0]) for pixels, _ in shown]
    panels += [_picture(channel[0].expand(3, -1, -1) * 255) for _, channel in shown]
    captions = [f"{form}: {part}" for part in ("pixels", "fourth channel") for form in PROMPT_FORMS]
    return contact_sheet(panels, captions, columns=len(PROMPT_FORMS), cell=PANEL)


def role_arrangement(rose: Rose, args: argparse.Namespace) -> np.ndarray:
    """Figure 5: the role of every patch, and the patches that learn the objects of a scene."""
    scene = compose_sample(args.seed, 0)
    model = rose.predictor.model
    side = rose.cfg.MODEL.LMM.IMAGE_SIZE
    view = _picture(model_views(scene.image, side, side)[0])
    roles = model.supervisor.assigner.patch_roles
    objects = _objects(scene, side)
    nowhere = torch.zeros(side, side, dtype=torch.bool)
    assignment = model.supervisor.assigner(objects, torch.zeros(0, 2), nowhere)
    chosen = torch.zeros(len(roles), dtype=torch.bool)
    chosen[assignment.patches] = True
    titles = ", ".join(
        f"{name}: {colour}"
        for name, colour in zip(ROLES, ("red", "orange", "blue", "green", "grey"), strict=True)
        if (roles == ROLES.index(name)).any()
    )
    return contact_sheet(
        [view, _tiles(view, roles, torch.ones_like(chosen)), _tiles(view, roles, chosen)],
        ["the language model's view", titles, "the patches that learn an object"],
        columns=3,
        cell=PANEL,
    )


def refinement(rose: Rose, args: argparse.Namespace) -> np.ndarray:
    """Figure 6: what a person who sees the mistakes of the first answer makes of it."""
    panels, captions = [], []
    for number in range(3):
        scene = compose_sample(args.seed, number)
        truth = [Segment(thing.mask, thing.name, 1.0) for thing in scene.objects]
        session = rose.open(scene.image)
        first = session.segment("instance")
        before = list(first)
        said = talk_about_mistakes(session, scene)
        panels += [
            scene.image,
            _drawn(scene.image, truth),
            _drawn(scene.image, before),
            _drawn(scene.image, session.segments),
        ]
        captions += ["image", "truth", "first answer", f"after {said} more turns"]
    return contact_sheet(panels, captions, columns=4, cell=PANEL)


def talk_about_mistakes(session: RoseSession, scene: Scene) -> int:
    """Repair what is wrong with an answer, object by object, as a person would.

    A wrong name is said to be wrong, a bad mask to be incomplete, and what nothing covers to be
    missing in its box.

    Returns:
        The number of turns.
    """
    turns = 0
    for thing in scene.objects:
        if thing.area < FEWEST_PIXELS:
            continue
        ious = [_iou(segment.mask, thing.mask) for segment in session.segments]
        best = int(np.argmax(ious)) if ious else -1
        if best < 0 or ious[best] < 0.3:
            session.missed(thing.box)
        elif session.segments[best].category_name != thing.name:
            session.refine(session.segments[best], situation="category")
        elif ious[best] < GOOD_IOU:
            session.refine(session.segments[best])
        else:
            continue
        turns += 1
    return turns


def referring(rose: Rose, args: argparse.Namespace) -> np.ndarray:
    """Figure 7: an expression, and what it finds."""
    panels, captions = [], []
    for number in range(8):
        scene = compose_sample(args.seed, number)
        rng = np.random.default_rng([args.seed, number])
        height, width = scene.stuff.shape
        (_, sentences), *_ = draw_references(rng, scene.objects, height, width)
        panels.append(rose(scene.image, refer=sentences[-1]).plot())
        captions.append(sentences[-1])
    return contact_sheet(panels, captions, columns=4, cell=PANEL)


def _pencil(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    blurred = cv2.GaussianBlur(255 - grey, (0, 0), 4)
    drawn = cv2.divide(grey, 255 - blurred, scale=256)
    return cv2.cvtColor(drawn, cv2.COLOR_GRAY2RGB)


def _coarse(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 5, height // 5), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


LOOKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as in training": lambda image: image,
    "grey": _grey,
    "negative": lambda image: 255 - image,
    "pencil": _pencil,
    "dark": lambda image: (image * 0.35).astype(np.uint8),
    "coarse": _coarse,
}
FIGURES: dict[str, Callable[[Rose, argparse.Namespace], np.ndarray]] = {
    "3": cross_domain,
    "4": prompt_forms,
    "5": role_arrangement,
    "6": refinement,
    "7": referring,
}


def _objects(scene: Scene, side: int) -> Instances:
    """The things of a scene in the square view, as `PatchAssigner` takes them."""
    masks = torch.stack(
        [mask_in_view(torch.from_numpy(thing.mask), side) for thing in scene.objects]
    )
    objects = Instances((side, side))
    objects.gt_masks = BitMasks(masks)
    objects.gt_is_stuff = torch.zeros(len(masks), dtype=torch.bool)
    return objects


def _tiles(view: np.ndarray, roles: torch.Tensor, shown: torch.Tensor) -> np.ndarray:
    """The view with some of its patches in the colours of their roles."""
    grid_side = round(len(roles) ** 0.5)
    scale = max(1, PANEL // view.shape[0])
    size = scale * view.shape[0] // grid_side
    drawn = cv2.resize(view, (grid_side * size, grid_side * size)).astype(np.float32)
    for index, (row, column) in enumerate(itertools.product(range(grid_side), repeat=2)):
        tile = drawn[row * size + 1 : (row + 1) * size, column * size + 1 : (column + 1) * size]
        if shown[index]:
            tile[:] = 0.4 * tile + 0.6 * np.array(ROLE_COLOURS[int(roles[index])])
    return drawn.astype(np.uint8)


def _drawn(image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    picture = RoseVisualizer(image).draw_segments(
        [segment.mask for segment in segments],
        [segment.category_name or "(no name)" for segment in segments],
        is_thing=[segment.is_thing for segment in segments],
    )
    return picture.get_image()


def _picture(pixels: torch.Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of (3, H, W) in 0..255."""
    return pixels.permute(1, 2, 0).numpy().astype(np.uint8)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def make_figures(args: argparse.Namespace) -> None:
    """Draw and write the figures asked for."""
    rose = Rose.from_pretrained(args.model)
    for number in FIGURES if args.figure == "all" else [args.figure]:
        drawn = FIGURES[number](rose, args)
        path = args.output / f"figure{number}.png"
        with whole_file(path) as partial:
            cv2.imwrite(str(partial), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_main(make_figures, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
