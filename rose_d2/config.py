"""Every configuration key of ROSE, with its default and its source."""

from detectron2.config import CfgNode as CN

from rose_d2.config_inference import add_inference_config

_TASKS = ("SEMANTIC", "INSTANCE", "PANOPTIC", "REFERRING", "REGION", "REFINEMENT")


def add_rose_config(cfg: CN) -> None:
    """Add ROSE's keys to a detectron2 config, in place.

    Defaults are the paper's values where the paper states one (section in the comment) and
    otherwise the choices listed in the README. `configs/Base-ROSE.yaml` builds on them.

    Args:
        cfg: the node returned by `detectron2.config.get_cfg()`.
    """
    # The parts under which detectron2 finds ROSE.
    cfg.MODEL.META_ARCHITECTURE = "ROSE"
    cfg.MODEL.BACKBONE.NAME = "LlavaOneVisionBackbone"
    # Load weights whose keys do not match the model; missing parts keep their initial values.
    cfg.MODEL.ALLOW_MISSING_KEYS = False
    _add_lmm(cfg)
    _add_trainable(cfg)
    _add_heads(cfg)
    _add_loss(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    add_inference_config(cfg)


def _add_lmm(cfg: CN) -> None:
    cfg.MODEL.LMM = CN()
    # Hugging Face folder or hub name with weights; "" builds the sizes below with random weights.
    cfg.MODEL.LMM.PRETRAINED = ""
    # Folder or hub name of the tokenizer; "" takes PRETRAINED's, "tiny" the built-in spelling one.
    cfg.MODEL.LMM.TOKENIZER = ""
    # Passed on to transformers' SiglipVisionConfig and Qwen2Config when PRETRAINED is "".
    cfg.MODEL.LMM.VISION_CONFIG = CN(new_allowed=True)
    cfg.MODEL.LMM.TEXT_CONFIG = CN(new_allowed=True)
    # Side of the square view (pixels) and of a patch; 672 / 14 = 48 (section 4.1).
    cfg.MODEL.LMM.IMAGE_SIZE = 672
    cfg.MODEL.LMM.PATCH_SIZE = 14
    # SigLIP's normalisation, RGB in 0..255.
    cfg.MODEL.LMM.PIXEL_MEAN = [127.5, 127.5, 127.5]
    cfg.MODEL.LMM.PIXEL_STD = [127.5, 127.5, 127.5]
    # bidirectional: image and instruction see each other (prefix-LM); causal: the ablation.
    cfg.MODEL.LMM.PROMPT_ATTENTION = "bidirectional"
    # Image before the instruction, as the paper prints its prompts.
    cfg.MODEL.LMM.IMAGE_FIRST = True
    # float32 | bfloat16: the dtype of the LMM's weights.
    cfg.MODEL.LMM.DTYPE = "float32"
    # Recompute activations in the backward pass (vision tower and language model).
    cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = False
    # Add learned two-dimensional position embeddings to the projected patches (ours). For small
    # models trained from scratch: rotary positions tell a patch's row better than its column.
    # They train where the patch embedding does.
    cfg.MODEL.LMM.PATCH_POSITIONS = False
    # sdpa | eager | flash_attention_2 (package flash-attn, GPU; SigLIP only, since the language
    # model's prefix mask is dense). sdpa picks among PyTorch's own kernels, flash ones included.
    cfg.MODEL.LMM.ATTENTION = "sdpa"

    cfg.MODEL.LORA = CN()
    # Low-rank adapters in the language model (section 4.1).
    cfg.MODEL.LORA.ENABLED = False
    # Rank and dropout are LISA's; alpha 32 on all linear layers is the paper's best (Table 5).
    cfg.MODEL.LORA.RANK = 8
    cfg.MODEL.LORA.ALPHA = 32
    cfg.MODEL.LORA.DROPOUT = 0.05
    # Linear layers inside language_model.layers that receive an adapter.
    cfg.MODEL.LORA.TARGET_MODULES = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]


def _add_trainable(cfg: CN) -> None:
    # What trains besides LoRA: the defaults are section 4.1's, the rest is frozen.
    cfg.MODEL.TRAINABLE = CN()
    # LMM: SigLIP, its patch embedding, projector, Qwen2 without its embedding and output layer.
    cfg.MODEL.TRAINABLE.VISION_TOWER = False
    cfg.MODEL.TRAINABLE.PATCH_EMBED = True
    cfg.MODEL.TRAINABLE.PROJECTOR = False
    cfg.MODEL.TRAINABLE.LANGUAGE_MODEL = False
    cfg.MODEL.TRAINABLE.EMBED_TOKENS = True
    cfg.MODEL.TRAINABLE.LM_HEAD = True
    # The patch analyzer, and SAM.
    cfg.MODEL.TRAINABLE.HEADS = True
    cfg.MODEL.TRAINABLE.SAM_IMAGE_ENCODER = False
    cfg.MODEL.TRAINABLE.SAM_PROMPT_ENCODER = False
    cfg.MODEL.TRAINABLE.SAM_MASK_DECODER = True


def _add_heads(cfg: CN) -> None:
    cfg.MODEL.SUPER_PATCH = CN()
    # One string a row; s small, m medium, l large, t stuff, a any role (section 3.2, Table 4).
    cfg.MODEL.SUPER_PATCH.LAYOUT = ["sms", "mlm", "sts"]
    # Side of the window of patches around an object's centre that learn it.
    cfg.MODEL.SUPER_PATCH.WINDOW = 3
    # sqrt(area) in LMM-view pixels below which an object is small, medium; else large.
    cfg.MODEL.SUPER_PATCH.SCALE_BOUNDS = [32.0, 96.0]

    cfg.MODEL.PATCH_ANALYZER = CN()
    # An entry of PATCH_ANALYZER_REGISTRY.
    cfg.MODEL.PATCH_ANALYZER.NAME = "StandardPatchAnalyzer"
    # Hidden width of the four projectors (section 4.1).
    cfg.MODEL.PATCH_ANALYZER.HIDDEN_DIM = 3584
    # Width of SigLIP's text embedding (so400m: 1152).
    cfg.MODEL.PATCH_ANALYZER.SIGLIP_DIM = 1152
    # How a patch learns its role: embedding | separate_heads | none.
    cfg.MODEL.PATCH_ANALYZER.ROLE_CONDITIONING = "embedding"

    cfg.MODEL.MASK_HEAD = CN()
    # An entry of MASK_HEAD_REGISTRY.
    cfg.MODEL.MASK_HEAD.NAME = "SAMMaskHead"
    # vit_h | vit_l | vit_b | tiny.
    cfg.MODEL.MASK_HEAD.SAM_ARCH = "vit_h"
    # segment-anything checkpoint (.pth); "" keeps random weights.
    cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = ""
    # Longest side of SAM's view in pixels, padded to a square.
    cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 1024
    # Also tell SAM where the patch is, by its own encoding of a click; the paper does not.
    cfg.MODEL.MASK_HEAD.POSITION_PROMPT = False
    # SAM's normalisation, RGB in 0..255.
    cfg.MODEL.MASK_HEAD.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.MASK_HEAD.PIXEL_STD = [58.395, 57.12, 57.375]

    cfg.MODEL.CATEGORY_DECODER = CN()
    # Longest generated name in tokens.
    cfg.MODEL.CATEGORY_DECODER.MAX_TOKENS = 16

    cfg.MODEL.REFINEMENT = CN()
    # How the mask to be repaired is shown (Table 6): concat (the fourth input channel) |
    # mask_overlay (drawn on the language model's view) | mask_box_overlay (with its box).
    cfg.MODEL.REFINEMENT.PROMPT = "concat"

    cfg.MODEL.SIGLIP_TEXT = CN()
    # Text embeddings of class names: ngram (hashed character n-grams) | folder or hub name.
    cfg.MODEL.SIGLIP_TEXT.SOURCE = "ngram"
    # Where embeddings of a hub model are cached, one file per vocabulary; "" recomputes.
    cfg.MODEL.SIGLIP_TEXT.CACHE_DIR = ""


def _add_loss(cfg: CN) -> None:
    cfg.MODEL.ROSE = CN()
    # Which tokens predict masks and where names come from (Table 3).
    cfg.MODEL.ROSE.SEGMENT_UNIT = "patch"
    cfg.MODEL.ROSE.CLASSIFY_UNIT = "decode"
    # Patch-object pairs per image that reach the mask, name and SigLIP losses.
    cfg.MODEL.ROSE.MAX_PAIRS = 16
    # Objectness negatives per image: wrong-role window patches, windows of objects not asked
    # for, and random others (section 3.3, "randomly pick some unsupervised patches").
    cfg.MODEL.ROSE.NEGATIVES_WRONG_ROLE = 64
    cfg.MODEL.ROSE.NEGATIVES_NOT_ASKED = 64
    cfg.MODEL.ROSE.NEGATIVES_RANDOM = 128
    # Softmax temperature of the InfoNCE loss.
    cfg.MODEL.ROSE.SIGLIP_TEMPERATURE = 0.07
    # Most names listed in the counting response.
    cfg.MODEL.ROSE.MAX_COUNTED_NAMES = 20

    cfg.MODEL.ROSE.LOSS_WEIGHT = CN()
    # Weights of the sum in equation 6.
    cfg.MODEL.ROSE.LOSS_WEIGHT.TEXT = 1.0
    cfg.MODEL.ROSE.LOSS_WEIGHT.CATEGORY = 1.0
    # LISA's weights, which the paper follows (section 3.5).
    cfg.MODEL.ROSE.LOSS_WEIGHT.MASK_BCE = 2.0
    cfg.MODEL.ROSE.LOSS_WEIGHT.MASK_DICE = 0.5
    # Equation 6 again.
    cfg.MODEL.ROSE.LOSS_WEIGHT.OBJECTNESS = 1.0
    cfg.MODEL.ROSE.LOSS_WEIGHT.SIGLIP = 1.0
    # Not in the paper: where one object is asked for, its patches against all outside its window.
    cfg.MODEL.ROSE.LOSS_WEIGHT.RANKING = 0.0


def _add_input(cfg: CN) -> None:
    # Sampling weight of each entry of DATASETS.TRAIN; () weighs all equally. An entry is a name,
    # or name@task for samples of another task made from it: coco_2017_train@refinement.
    cfg.DATASETS.TRAIN_WEIGHTS = ()
    # Your own datasets: (name, "coco", image folder, annotation JSON) or (name, "labels", image
    # folder, folder of label PNGs, file of class names); the names then go into TRAIN and TEST.
    cfg.DATASETS.CUSTOM = ()
    # Share of each task, divided among its datasets by TRAIN_WEIGHTS; all 0: those alone decide.
    cfg.DATASETS.TASK_WEIGHTS = CN(dict.fromkeys(_TASKS, 0.0))
    # Referring val and test images are left out of every training set, for splits by these
    # people; () leaves none out. "google" would cost 40 % of RefCOCO, "berkeley" half of RefCLEF.
    cfg.DATASETS.EXCLUDE_EVAL_SPLITS = ("unc", "umd")
    # A broken annotation or image stops the run; False: it is counted, reported and left out.
    cfg.DATASETS.STRICT = False
    # Share of dense samples whose prompt lists class candidates (true names plus distractors).
    cfg.INPUT.CANDIDATE_PROB = 0.0
    # Most names in such a list that are not in the image.
    cfg.INPUT.CANDIDATE_MAX_DISTRACTORS = 10
    # Share of mirrored training samples; never applied to referring expressions.
    cfg.INPUT.FLIP_PROB = 0.5
    # Share of region prompts with the region as a mask; the others write its box into the text.
    cfg.INPUT.REGION_MASK_PROB = 0.5

    cfg.INPUT.REFINEMENT = CN()
    # Shares of the situations mask, category and missed (section 3.4; the numbers are ours).
    cfg.INPUT.REFINEMENT.SITUATION_PROBS = [0.4, 0.3, 0.3]
    # Share of corrupted masks with holes and patches; the others are shrunk or stretched.
    cfg.INPUT.REFINEMENT.HOLES_PROB = 0.5
    # IoU of the corrupted with the true mask (ours; CascadePSP trains on 0.7 to 1.0).
    cfg.INPUT.REFINEMENT.HOLES_IOU = [0.7, 1.0]
    cfg.INPUT.REFINEMENT.SHAPE_IOU = [0.3, 0.9]
    # Share of referring expressions' priors that lie on another object (ours): first answers may.
    cfg.INPUT.REFINEMENT.OTHER_OBJECT_PROB = 0.2
    # Regions with fewer pixels of the square view are not refined or prompted for.
    cfg.INPUT.REFINEMENT.MIN_PIXELS = 16


def _add_solver(cfg: CN) -> None:
    # Step engine: torch | deepspeed.
    cfg.SOLVER.ENGINE = "torch"
    cfg.SOLVER.DEEPSPEED = CN()
    # What DeepSpeed's ZeRO divides among processes: 1 optimizer, 2 gradients too (as LISA), 3
    # weights too.
    cfg.SOLVER.DEEPSPEED.ZERO_STAGE = 2
    # JSON of more DeepSpeed settings; "" none. What SOLVER says may not be contradicted there.
    cfg.SOLVER.DEEPSPEED.CONFIG_FILE = ""
    # Micro-batches of IMS_PER_BATCH images summed into one optimizer step.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Checkpoints kept on disk, newest first; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # bfloat16 | float16 (GPU only, with loss scaling): what SOLVER.AMP.ENABLED computes in.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Clips the norm over all parameters to CLIP_VALUE; the only type the step engines know.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    # Iterations between progress lines; a row of metrics is the median over them.
    cfg.SOLVER.LOG_PERIOD = 20
    # Updates skipped in a row because of a NaN or infinite loss or gradient before the run stops
    # with a dump; 0 stops at the first. One broken sample costs one update, diverged weights all.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0
    # Seconds without progress until the rank that stalls is named; 0: no watchdog (ours: several
    # times a step of the 7B model, a sixth of the time-out of collectives).
    cfg.SOLVER.WATCHDOG_SECONDS = 300.0
    # Peak of one device in TFLOP/s, for model FLOPs utilisation; 0: measured at the start by a
    # matrix product, -1: no such metric.
    cfg.SOLVER.DEVICE_PEAK_TFLOPS = 0.0
    # Learning-rate factor per part: the names of MODEL.TRAINABLE, and LORA.
    cfg.SOLVER.LR_MULTIPLIER = CN(dict.fromkeys((*cfg.MODEL.TRAINABLE, "LORA"), 1.0))
