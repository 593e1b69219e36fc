"""Every configuration key of ROSE, with its default and its source."""

from detectron2.config import CfgNode as CN

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
    # The model's learned end-of-view vector (image_newline) behind the patches, where Hugging Face
    # puts it behind a view; pretrained models know it, one trained from scratch needs none.
    cfg.MODEL.LMM.IMAGE_NEWLINE = False
    # sdpa | eager | flash_attention_2 (package flash-attn, GPU; SigLIP only, since the language
    # model's prefix mask is dense). sdpa picks among PyTorch's own kernels, flash ones included.
    cfg.MODEL.LMM.ATTENTION = "sdpa"
    # none | int8 | nf4: the language model's linear layers in 8 or in 4 bits, as PRETRAINED is
    # loaded; for inference (package bitsandbytes; on a CPU, too).
    cfg.MODEL.LMM.QUANTIZE = "none"

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
    # What of the region an instruction speaks of is shown to SAM too, by its own prompts (the paper
    # shows it to the language model only): none | mask (to be repaired or named) | box | mask_box.
    cfg.MODEL.MASK_HEAD.REGION_PROMPT = "none"
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
    # A box that is named without a mask is shown there too, filled (ours).
    cfg.MODEL.REFINEMENT.BOX_AS_MASK = False

    cfg.MODEL.SIGLIP_TEXT = CN()
    # Text embeddings of class names: ngram (hashed character n-grams) | folder or hub name.
    cfg.MODEL.SIGLIP_TEXT.SOURCE = "ngram"
    # Where embeddings of a hub model are cached, one file per vocabulary; "" recomputes.
    cfg.MODEL.SIGLIP_TEXT.CACHE_DIR = ""


def _add_loss(cfg: CN) -> None:
    cfg.MODEL.ROSE = CN()
    # Which tokens draw masks and where names come from (Table 3): patch with decode (ROSE),
    # seg_stack or seg_dense_stack with along_seg, patch with along_region; see
    # rose_d2/modeling/frameworks.py.
    cfg.MODEL.ROSE.SEGMENT_UNIT = "patch"
    cfg.MODEL.ROSE.CLASSIFY_UNIT = "decode"
    # <SEG> tokens a target has in a dense stack (ours).
    cfg.MODEL.ROSE.SEGS_PER_TARGET = 3
    # Patches of each object that reach the mask, name and SigLIP losses, drawn anew every time:
    # with 1 there are as many pairs as objects (section 3.3, "N is determined by the number of
    # ground truth"); 0: all its patches.
    cfg.MODEL.ROSE.PAIRS_PER_OBJECT = 1
    # Most such pairs of an image, against running out of memory; beyond it, objects are drawn.
    cfg.MODEL.ROSE.MAX_PAIRS = 256
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
    # Not in the paper: what SAM's IoU head says of its mask, and of the one to be repaired.
    cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY = 0.0


def _add_input(cfg: CN) -> None:
    # Sampling weight of each entry of DATASETS.TRAIN; () weighs all equally. An entry is a name,
    # or name@task for samples of another task made from it: coco_2017_train@refinement.
    cfg.DATASETS.TRAIN_WEIGHTS = ()
    # Your own datasets: (name, "coco", image folder, annotation JSON) or (name, "labels", image
    # folder, folder of label PNGs, file of class names); the names then go into TRAIN and TEST.
    # With "val" at its end an entry has every fifth image, with "train" the others.
    cfg.DATASETS.CUSTOM = ()
    # Share of each task, divided among its datasets by TRAIN_WEIGHTS; all 0: those alone decide.
    cfg.DATASETS.TASK_WEIGHTS = CN(dict.fromkeys(_TASKS, 0.0))
    # Referring val and test images are left out of every training set, for splits by these
    # people; () leaves none out. "google" would cost 40 % of RefCOCO, "berkeley" half of RefCLEF.
    cfg.DATASETS.EXCLUDE_EVAL_SPLITS = ("unc", "umd")
    # A broken annotation or image stops the run; False: it is counted, reported and left out.
    cfg.DATASETS.STRICT = False
    # What is asked about an image that comes without words (detectron2's own predictor, mapper and
    # tools): semantic | instance | panoptic; answered in the classes of the first test dataset.
    cfg.INPUT.DEFAULT_TASK = "panoptic"
    # Share of dense samples whose prompt lists class candidates (true names plus distractors).
    cfg.INPUT.CANDIDATE_PROB = 0.0
    # Most names in such a list that are not in the image; -1: lists of every length up to the whole
    # vocabulary, as evaluation gives it, a quarter of them whole (ours).
    cfg.INPUT.CANDIDATE_MAX_DISTRACTORS = -1
    # Share of mirrored training samples; never applied to referring expressions.
    cfg.INPUT.FLIP_PROB = 0.5
    # Images of more pixels are refused instead of decoded: a file of a few kB can claim any size.
    cfg.INPUT.MAX_PIXELS = 100_000_000
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
    # Share of samples with a prior whose words have the target's box, as a person draws it, and not
    # the prior's; and how far a person's box is off, as a share of its sides (ours; the paper's
    # second turns must know the target, see TEST.REFINEMENT.BOX).
    cfg.INPUT.REFINEMENT.TARGET_BOX_PROB = 0.5
    cfg.INPUT.REFINEMENT.BOX_JITTER = 0.1
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


def add_inference_config(cfg: CN) -> None:
    """Add the TEST group: how a trained model is run and how its answers are scored.

    Args:
        cfg: the node returned by `detectron2.config.get_cfg()`.
    """
    # Images per batch and process at evaluation.
    cfg.TEST.IMS_PER_BATCH = 1
    # Evaluate a fixed part of each dataset: so many samples at even distances; 0: all.
    cfg.TEST.NUM_SAMPLES = 0
    # Patches kept by objectness (100: section 4.1) and slots of them reserved for the stuff role
    # (ours; 0: none).
    cfg.TEST.TOP_K = 100
    cfg.TEST.TOP_K_STUFF = 0
    # Instances below this objectness are filtered out (section 6.3; the value is ours). What other
    # tasks make of a candidate has thresholds of its own below; a referring expression is
    # answered whatever the score.
    cfg.TEST.SCORE_THRESH = 0.05
    # AP ranks by objectness times the name's probability (ours); False: by objectness alone, the
    # paper's confidence (section 4.2).
    cfg.TEST.RANK_BY_NAME = True
    # Also write the counting sentence the language model generates.
    cfg.TEST.GENERATE_RESPONSE = False
    # Longest response in tokens, a stack's too.
    cfg.TEST.MAX_RESPONSE_TOKENS = 512
    # Keep what the model answered, image by image: evaluations can then be resumed and scored anew.
    cfg.TEST.SAVE_PREDICTIONS = False
    _add_postprocessing(cfg)
    _add_naming(cfg)
    _add_refinement(cfg)


def _add_postprocessing(cfg: CN) -> None:
    cfg.TEST.NMS = CN()
    # Masks overlapping a better one by more than this IoU are dropped (NMS: section 6.3; the value
    # is ours).
    cfg.TEST.NMS.THRESH = 0.6
    # True compares only masks of one name (names are then decoded before NMS).
    cfg.TEST.NMS.CLASS_AWARE = False
    # Masks of larger images are compared at this longest side in pixels, to bound memory (ours).
    cfg.TEST.NMS.LONGEST_SIDE = 512

    cfg.TEST.SEMANTIC = CN()
    # Constant score of the extra "no object" channel (the channel: section 6.3; the value is ours).
    cfg.TEST.SEMANTIC.NON_OBJECT_SCORE = 0.05
    # How predictions of one class combine: max (ours) | sum (Mask2Former's).
    cfg.TEST.SEMANTIC.MERGE = "max"

    cfg.TEST.PANOPTIC = CN()
    # Segments below this objectness, or keeping less than this share of their mask, are dropped,
    # as in Mask2Former, whose values for COCO are 0.8 and 0.8; these are ours.
    cfg.TEST.PANOPTIC.SCORE_THRESH = 0.5
    cfg.TEST.PANOPTIC.OVERLAP_THRESH = 0.6

    cfg.TEST.REFERRING = CN()
    # gRefCOCO: return every instance above the score threshold, possibly none.
    cfg.TEST.REFERRING.MULTI_TARGET = False
    # per_sentence: every sentence is asked and scored alone. per_ref: all sentences of a reference
    # in one prompt, one score per reference, as PSALM does; its numbers are labelled so.
    cfg.TEST.REFERRING.PROTOCOL = "per_sentence"


def _add_naming(cfg: CN) -> None:
    cfg.TEST.VOCABULARY = CN()
    # The last mapping rule that counts in the headline numbers, see
    # rose_d2/vocabulary/vocabulary.py; the report has the numbers of every level besides.
    cfg.TEST.VOCABULARY.LEVEL = "synonym"
    # Folder of WordNet's database files for the lexical rules; "auto" looks where NLTK and
    # Debian put them and goes on without; "" leaves those rules out.
    cfg.TEST.VOCABULARY.WORDNET = "auto"
    # Nearest class by text embedding of MODEL.SIGLIP_TEXT: "" off | name (embed the generated
    # name) | predicted (the patch's own SigLIP embedding).
    cfg.TEST.VOCABULARY.SIMILARITY = ""
    # Smallest cosine similarity that maps (ours; names below it stay unmapped).
    cfg.TEST.VOCABULARY.SIMILARITY_THRESH = 0.8
    # Class names given to the model: "" none (free vocabulary) | prompt (listed in the
    # instruction) | decode (names are decoded along their token trie) | both.
    cfg.TEST.CANDIDATES = ""
    # Also Open mIoU, AP and PQ (TPAMI 2025), with this WordNet similarity: "" none | path | wup.
    cfg.TEST.OPEN_METRICS = ""


def _add_refinement(cfg: CN) -> None:
    cfg.TEST.REFINEMENT = CN()
    # Evaluate before and after conversation-based refinement of each answer. Ground truth chooses
    # what is refined and how, as in the paper (section 6.1).
    cfg.TEST.REFINEMENT.ENABLED = False
    # Turns of refinement; each starts from the result of the one before.
    cfg.TEST.REFINEMENT.ROUNDS = 1
    # Whose box the instruction names: target (of a simulated person, who knows the target; so the
    # paper's referring results after refinement must have come about, section 6.1) | prior (of the
    # answer that is refined, which knows nothing else). A missed object always has its own.
    cfg.TEST.REFINEMENT.BOX = "target"
    # The answering patch must touch the box of the instruction (ours); False takes the patch of
    # highest objectness wherever it is, and leaves it to the model to read the box.
    cfg.TEST.REFINEMENT.WITHIN_BOX = True
    # Pixels of the mask to be repaired change only where the answer's probability and that mask's
    # coverage, both at SAM's resolution, differ by more than this (ours; 0.5 is the natural value);
    # 0: the answer is drawn anew, as in the paper.
    cfg.TEST.REFINEMENT.CHANGE_MARGIN = 0.0
    # The mask to be repaired stays where SAM's IoU head rates it higher than the answer's; the
    # answer's name counts all the same (ours; needs MODEL.ROSE.LOSS_WEIGHT.QUALITY).
    cfg.TEST.REFINEMENT.KEEP_BETTER = False
    # Semantic: categories refined per image, by union minus intersection.
    cfg.TEST.REFINEMENT.WORST_CLASSES = 5
    # Semantic, Algorithm 1: recall from which a category counts as found, and the share of its
    # pixels under one other name above which it counts as misnamed.
    cfg.TEST.REFINEMENT.RECALL_THRESH = 0.2
    cfg.TEST.REFINEMENT.CONFUSION_SHARE = 0.5
    # Instance: predictions refined per image, in descending objectness, and the IoU with their
    # object below which they are.
    cfg.TEST.REFINEMENT.MAX_INSTANCES = 10
    cfg.TEST.REFINEMENT.IOU_THRESH = 0.5
