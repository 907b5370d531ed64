# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Every configuration key that this project adds to Detectron2's own, each with its meaning; the model's are in
model_config.py.

Keys of Detectron2 that are used as they are (``INPUT.MIN_SIZE_TRAIN``, ``SOLVER.BASE_LR``, ...) are only given another
default here. Sources of the defaults: docs/design.md, "Where the numbers come from".
"""

from detectron2.config import CfgNode as CN

from .model_config import add_model_keys


def add_core_config(cfg: CN) -> None:
    """Add the core's keys to ``cfg``, in place. A paper adds its own (registry.adds_config)."""
    for add in CORE:
        add(cfg)
    _say_what_old_keys_are_called(cfg)


def _add_data_keys(cfg: CN) -> None:
    # Datasets to register, one {name: my_train, path: FILE_OR_FOLDER} each, whose format the path tells: COCO json,
    # CrowdHuman's odgt, YOLO, Pascal VOC or CSV (docs/data.md). Further keys of an entry: split, images (a folder),
    # classes (a file), box (of an odgt: full, visible, head), format. Relative paths start at the working directory.
    # The names can then stand in DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.FILES = []

    # The same for COCO json alone, one [name, annotation json, image folder] each.
    cfg.DATASETS.COCO_JSON = []

    # The same for CrowdHuman, or data of its format: one [name, annotation odgt, image folder, box] each; box is
    # "full", "visible" or "head". Masks and ignored persons are ignore regions.
    cfg.DATASETS.CROWDHUMAN = []

    # The built-in dataset "synthetic_crowd_train" / "synthetic_crowd_val", drawn on the fly.
    cfg.DATASETS.SYNTHETIC_CROWD = CN()
    cfg.DATASETS.SYNTHETIC_CROWD.SEED = 1
    cfg.DATASETS.SYNTHETIC_CROWD.NUM_TRAIN = 2000
    cfg.DATASETS.SYNTHETIC_CROWD.NUM_VAL = 200
    cfg.DATASETS.SYNTHETIC_CROWD.HEIGHT = 160
    cfg.DATASETS.SYNTHETIC_CROWD.WIDTH = 208
    # Mean number of figures drawn in an image; the ones that are more than 90 % covered have no label.
    cfg.DATASETS.SYNTHETIC_CROWD.DENSITY = 8.0
    # 0: objects are spread out; towards 1: they stand in tight groups and cover each other.
    cfg.DATASETS.SYNTHETIC_CROWD.OCCLUSION = 0.4
    # Share of images that hold an ignore region (a far-away crowd nobody could label one by one).
    cfg.DATASETS.SYNTHETIC_CROWD.IGNORE = 0.1
    # Which box is the target: "full" (the whole object) or "visible" (what is not covered).
    cfg.DATASETS.SYNTHETIC_CROWD.BOX = "full"

    # Images without objects are kept as pure negatives; True drops them.
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.FORMAT = "RGB"
    # Larger pictures are refused, as a small file can unpack to many gigabytes; 0: none is.
    cfg.INPUT.MAX_PIXELS = 178_956_970
    # DETR's augmentation: when CROP.ENABLED, half of the training images are resized to a short side out of
    # CROP.RESIZE, cropped to CROP.SIZE (smallest and largest side) and then resized like the other half.
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [384, 600]
    cfg.INPUT.CROP.RESIZE = [400, 500, 600]


def _add_training_keys(cfg: CN) -> None:
    S = cfg.SOLVER
    S.OPTIMIZER = "AdamW"
    S.FUSED = True  # AdamW is one kernel for all weights: the same formula, rounded otherwise
    # On a GPU products of matrices in float32 round their factors to TF32's 10 bits, as convolutions do by torch's
    # default; faster, and published numbers were made with either.
    S.TF32 = False
    S.BASE_LR = 2e-4
    S.WEIGHT_DECAY = 1e-4
    S.WEIGHT_DECAY_NORM = 1e-4
    S.BACKBONE_MULTIPLIER = 0.1
    # A layer of the backbone learns at this factor of the next one's rate (ViTDet: 0.7 for ViT-B, 0.8 for ViT-L), the
    # first one, patch embedding, slowest; 1: off. For backbones of timm.
    S.LAYER_DECAY = 1.0
    # For parameters named sampling_offsets or reference_points.
    S.OFFSET_MULTIPLIER = 0.1
    S.WARMUP_ITERS = 0
    S.IMS_PER_BATCH = 16
    # Each process's share of a batch goes through the model in so many parts, which need less memory, with the
    # gradients that it has in one piece (docs/training.md says how exactly).
    S.ACCUMULATE = 1
    # The batch that BASE_LR and WARMUP_ITERS, and where EPOCHS is 0 all iteration keys, are meant for: they are scaled
    # to IMS_PER_BATCH, the learning rate in proportion. 0: they are taken as they are.
    S.REFERENCE_BATCH = 0
    # Schedule in epochs; MAX_ITER, STEPS, the checkpoint and the evaluation period follow from the dataset's size and
    # IMS_PER_BATCH. EPOCHS = 0: Detectron2's iteration keys count.
    S.EPOCHS = 0
    S.ITERS_PER_EPOCH = 0.0  # images / IMS_PER_BATCH; training sets it, for parts that change with the epoch
    S.EPOCH_STEPS = []  # epochs at which the learning rate is multiplied by SOLVER.GAMMA
    S.CHECKPOINT_EPOCHS = 1
    S.CHECKPOINT_KEEP = 3  # so many of the latest periodic checkpoints stay; 0: all
    cfg.TEST.EVAL_EPOCHS = 1  # 0: only after the last iteration
    # The metric whose best value decides which weights become model_best.pth; leading minus: lower is better; "": none.
    # With several test datasets its name starts with the dataset, as in "my_val/bbox/AP".
    cfg.TEST.BEST_METRIC = "bbox/AP"
    # The gradient norm over all parameters together.
    S.CLIP_GRADIENTS.ENABLED = True
    S.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    S.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    S.AMP.DTYPE = "bfloat16"  # used when SOLVER.AMP.ENABLED; or "float16"

    # An exponential moving average of the weights: written beside the others as model_ema.pth, and evaluated in their
    # place (EVAL), so that model_best.pth holds it too. A step counts 1 - DECAY, one of the first WARMUP_ITERS more.
    S.EMA = CN()
    S.EMA.ENABLED = False
    S.EMA.DECAY = 0.9998
    S.EMA.WARMUP_ITERS = 2000
    S.EMA.EVAL = True

    # Training ends after so many evaluations without a better BEST_METRIC; 0: never before its last iteration.
    cfg.TEST.PATIENCE = 0
    # Evaluation during training also takes the losses over the test datasets, without dropout, as validation/...: a
    # second pass over the images.
    cfg.TEST.LOSS = False

    # Where numbers and pictures go besides metrics.json: "tensorboard", "wandb", "mlflow" (docs/logging.md).
    cfg.LOGGERS = ["tensorboard"]
    cfg.TEST.PICTURES = 4  # of each test dataset and evaluation, for the loggers: truth beside predictions

    # Detections kept per image; also the evaluators' maxDets.
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    # report.html beside the results of an evaluation and of a training's last one; it takes seconds.
    cfg.TEST.REPORT = True
    # Query use: a query slot counts as active in an image when its best class scores above this threshold.
    cfg.TEST.QUERY_USE = CN()
    cfg.TEST.QUERY_USE.ENABLED = False
    cfg.TEST.QUERY_USE.THRESHOLD = 0.3

    # AP, MR-2, JI and recall of crowds, for any dataset with ignore boxes.
    cfg.TEST.CROWD = CN()
    cfg.TEST.CROWD.ENABLED = False
    cfg.TEST.CROWD.PROTOCOL = "crowddet"  # or "dh", how DH-DETR's numbers were made

    cfg.SEED = 42
    cfg.VERSION = 2


CORE = (_add_data_keys, add_model_keys, _add_training_keys)


def _say_what_old_keys_are_called(cfg: CN) -> None:
    """Keys of earlier versions: using one is an error that says how it is written now."""
    for old, new, value in (
        ("PATTERNS.ENABLED", "QUERIES.CONTENT", "patterns"),
        ("QUALITY_ASSIGNMENT.ENABLED", "ASSIGNER.INTERMEDIATE", "quality_count"),
        ("QUALITY_ASSIGNMENT.ENCODER", "ASSIGNER.ENCODER", "quality_count"),
        ("DEHOMO.LAYERS", "DECODER.INTERACTION", "a list with dehomo for each of these layers"),
        ("DEHOMO.CENTER_INSIDE", "MATCHER.COST", "a list with center_inside for the layers behind a generator"),
        ("SOFT_TARGET.ENABLED", "LOSS.ENCODER_CLASSIFICATION", "soft_focal"),
        ("HYBRID.ENABLED", "ROUTES", "[hybrid]"),
        ("DECODER.SELF_ATTENTION", "DECODER.INTERACTION", "[self_attention] or [none]"),
    ):
        cfg.register_renamed_key(f"MODEL.DETR.{old}", f"MODEL.DETR.{new}", f"write MODEL.DETR.{new}: {value}")
