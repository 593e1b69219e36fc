"""The TEST keys of ROSE: inference and scoring."""

from detectron2.config import CfgNode as CN


def add_inference_config(cfg: CN) -> None:
    """Add the TEST group: how a trained model is run and how its answers are scored.

    Args:
        cfg: the node returned by `detectron2.config.get_cfg()`.
    """
    # Images per batch and process at evaluation.
    cfg.TEST.IMS_PER_BATCH = 1
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
    # rose_d2/modeling/vocabulary.py; the report has the numbers of every level besides.
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
    # The answering patch must touch the box of the instruction (ours); False takes the patch of
    # highest objectness wherever it is, and leaves it to the model to read the box.
    cfg.TEST.REFINEMENT.WITHIN_BOX = True
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
