# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import copy
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import DefaultPredictor
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from paq_detr.engine import DetrCheckpointer
from paq_detr.engine.rng import rng_state, set_rng_state
from paq_detr.errors import UserError
from paq_detr.structures import stack_instances

from .assemblies import (
    ASSEMBLIES,
    ASSIGNMENT,
    HYBRID,
    PARALLEL,
    PATTERNS,
    PLUSPLUS,
    SINGLE_STAGE,
    TWO_STAGE,
    decode,
    make_cfg,
    make_image,
    make_model,
    memory_of,
    wake_up,
)

assemblies = pytest.mark.parametrize("options", ASSEMBLIES.values(), ids=ASSEMBLIES.keys())


_built: dict = {}


def shared_model(options):
    """Of the first seed and in training, for tests that leave it as it is but for gradients: built once for all."""
    key = str(options)
    if key not in _built:
        _built[key] = make_model(options)
    torch.manual_seed(0)
    _built[key].zero_grad(set_to_none=True)
    return _built[key].train()


def total(losses):
    return sum(losses.values())


def detections(model, images):
    model.eval()
    with torch.no_grad():
        return [output["instances"] for output in model(images)]


def assert_same_detections(some, others, tolerance=1e-4):
    for a, b in zip(some, others):
        torch.testing.assert_close(a.scores, b.scores, atol=tolerance, rtol=0)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=100 * tolerance, rtol=0)


@assemblies
def test_every_parameter_gets_a_gradient_in_one_step(options, two_images):
    model = shared_model(options)
    total(model(two_images)).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@assemblies
@pytest.mark.parametrize("with_objects", [(), (1,)], ids=["none_at_all", "half_the_batch"])
def test_images_without_objects_train(options, with_objects, two_images):
    images = [make_image(64, 96, seed=3), two_images[1] if 1 in with_objects else make_image(50, 120, seed=4)]
    model = shared_model(options)
    losses = model(images)
    total(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    if not with_objects:
        assert all(value == 0 for name, value in losses.items() if name.startswith(("loss_l1", "loss_giou")))


@assemblies
def test_batch_of_two_equals_two_batches_of_one(options, two_images):
    model = wake_up(make_model(options))
    together = detections(model, two_images)
    alone = [detections(model, [image])[0] for image in two_images]
    assert_same_detections(together, alone)


def test_the_published_padding_makes_an_image_depend_on_its_batch(two_images):
    """What NECK.MASK_PADDING mends: group norms that see padding."""
    model = wake_up(make_model(PLUSPLUS, **{"MODEL.DETR.NECK.MASK_PADDING": False}))
    together, alone = detections(model, two_images)[1], detections(model, two_images[1:])[0]
    assert (together.scores - alone.scores).abs().max() > 1e-3


@assemblies
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 400), (400, 33)], ids=str)
def test_tiny_and_very_long_images(options, size):
    model = shared_model(options)
    images = [make_image(*size, [[0, 0, size[1], size[0]]], [1])]
    assert torch.isfinite(total(model(images)))
    (result,) = detections(model, images)
    assert result.image_size == size
    assert result.pred_boxes.tensor.isfinite().all()


@pytest.mark.parametrize("options", [TWO_STAGE, PLUSPLUS, {**PLUSPLUS, **PATTERNS}], ids=["two_stage", "pp", "paq"])
def test_fewer_tokens_than_queries_beside_a_larger_image(options, two_images):
    model = wake_up(make_model(options, **{"MODEL.DETR.QUERIES.NUM": 40}))
    tiny = make_image(9, 17, [[1, 1, 12, 8]], [0])
    total(model([tiny, two_images[0]])).backward()
    together = detections(model, [tiny, two_images[0]])
    assert_same_detections(together, [detections(model, [tiny])[0], detections(model, two_images[:1])[0]])


@assemblies
def test_nan_features_give_no_detections_and_no_hang(options, two_images):
    model = make_model(options)
    with torch.no_grad():
        next(module for module in model.neck.modules() if isinstance(module, torch.nn.Conv2d)).bias.fill_(float("nan"))
    for result in detections(model, two_images):
        assert len(result) == 0
    model.train()
    assert not torch.isfinite(total(model(two_images)))


@assemblies
def test_training_only_parts_deleted_gives_the_same_output(options, two_images):
    model = wake_up(make_model(options))
    before = detections(model, two_images)
    slim = copy.deepcopy(model)
    slim.drop_training_parts()
    augmenter = options.get("MODEL.DETR.QUERIES.AUGMENT", "none")
    has_such_parts = (
        bool(options.get("MODEL.DETR.ROUTES"))
        or augmenter not in ("none", "box_dn")  # which has no parameters
        or options.get("MODEL.DETR.DECODER.NAME") == "parallel"
    )
    assert (len(slim.state_dict()) < len(model.state_dict())) == has_such_parts
    for a, b in zip(before, detections(slim, two_images)):
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


@assemblies
def test_a_step_after_a_restart_is_the_step_without_it(options, two_images):
    """Weights and the generators' state are all that a step depends on: what a checkpoint keeps."""
    model = make_model(options)
    total(model(two_images)).backward()
    weights, generators = copy.deepcopy(model.state_dict()), rng_state()
    straight = model(two_images)
    fresh = make_model(options, seed=7)
    fresh.load_state_dict(weights)
    set_rng_state(generators)
    resumed = fresh(two_images)
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)


def step_on_a_rank(rank, folder):
    """A step of every assembly; the second process's images hold no object."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    boxes = ([[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2]) if rank == 0 else ()
    images = [make_image(64, 96, *boxes, seed=rank)]
    norms = {}
    for name, options in ASSEMBLIES.items():
        model = make_model(options)
        model = DistributedDataParallel(model, broadcast_buffers=False)
        total(model(images)).backward()
        model(images)  # this is where torch tells of a parameter that one rank's step did without
        norms[name] = sum(p.grad.norm().item() for p in model.parameters() if p.grad is not None)
    with open(f"{folder}/rank{rank}.json", "w") as file:
        json.dump(norms, file)
    dist.destroy_process_group()


def test_two_ranks_of_which_one_has_no_objects_train_every_assembly(tmp_path):
    mp.start_processes(step_on_a_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first.keys() == ASSEMBLIES.keys()
    assert first == second and all(np.isfinite(list(first.values())))  # gradients are shared


def test_a_borrowed_decoder_is_saved_once_and_survives_a_copy(two_images):
    model = make_model({**PLUSPLUS, **HYBRID})
    assert not any(name.startswith("routes.hybrid.decoder") for name in model.state_dict())
    twin = copy.deepcopy(model)
    total(twin(two_images)).backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("size", [(40, 160), (160, 40)], ids=str)
def test_height_and_width_are_not_mixed_up(size):
    """Before anything clips them, boxes are shares of width and height in this order."""
    model = wake_up(make_model(PLUSPLUS)).eval()
    image = make_image(*size)
    with torch.no_grad():
        shares = decode(model, [image])[-1].boxes[0]
        (result,) = model.detect(memory_of(model, [image]))
    x, y, w, h = shares[result.query_indices].unbind(-1)
    height, width = size
    expected = torch.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], -1)
    torch.testing.assert_close(result.pred_boxes.tensor, expected)


def test_boxes_come_back_in_the_size_asked_for():
    model = wake_up(make_model(PLUSPLUS))
    image = make_image(64, 96)
    (small,) = detections(model, [image])
    (large,) = detections(model, [{**image, "height": 128, "width": 288}])
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(large.pred_boxes.tensor, small.pred_boxes.tensor * scale)


def test_no_more_detections_than_asked_for_or_than_there_are_pairs(two_images):
    assert all(len(r) == 5 for r in detections(make_model(**{"TEST.DETECTIONS_PER_IMAGE": 5}), two_images))
    assert all(len(r) == 36 for r in detections(make_model(**{"TEST.DETECTIONS_PER_IMAGE": 900}), two_images))


def test_a_bf16_step_trains(two_images):
    model = make_model({**PLUSPLUS, **PATTERNS, **ASSIGNMENT})
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(two_images)
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(total(losses), total(model(two_images)), atol=0, rtol=0.05)


def test_an_unmatched_query_in_an_ignore_region_has_no_class_loss(two_images):
    model = make_model(SINGLE_STAGE)
    image = two_images[0]
    image["instances"].gt_ignore = torch.tensor([False, False])
    plain = model([image])["loss_class/final"]
    whole = make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60], [0, 0, 96, 64]], [0, 2, 0], seed=1)
    whole["instances"].gt_ignore = torch.tensor([False, False, True])
    ignored = model([whole])["loss_class/final"]
    assert 0 < ignored < plain


def test_ignore_regions_are_no_objects():
    image = make_image(64, 96, [[4, 6, 40, 50], [0, 0, 96, 64]], [0, 2])
    image["instances"].gt_ignore = torch.tensor([False, True])
    targets = stack_instances([image["instances"]], [(64, 96)], torch.device("cpu"))
    assert targets.counts == (1,) and len(targets.ignore_boxes) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.DETR.CLASS_NAMES": []}, "CLASS_NAMES is empty"),
        ({"MODEL.DETR.NECK.NAME": "fpm"}, 'NECK.NAME is "fpm", must be one of .*channel_mapper'),
        ({"MODEL.DETR.ENCODER.NAME": "dens"}, 'ENCODER.NAME is "dens", must be one of .*deformable'),
        ({"MODEL.DETR.CODEC": "xywh"}, 'CODEC is "xywh", must be one of .*rcnn_delta, xyzr'),
        ({"MODEL.DETR.QUERIES.NAME": "EncoderTopM"}, "QUERIES.NAME is .* must be one of .*EncoderTopN, LearnedAnchors"),
        ({"MODEL.DETR.QUERIES.CONTENT": "learnt"}, 'QUERIES.CONTENT is "learnt", must be one of .*learned, .*patterns'),
        ({"MODEL.DETR.QUERIES.AUGMENT": "dn2"}, 'QUERIES.AUGMENT is "dn2"'),
        ({"MODEL.DETR.QUERIES.SUPERVISE": "some"}, "QUERIES.SUPERVISE"),
        ({"MODEL.DETR.DECODER.NAME": "serial"}, 'DECODER.NAME is "serial", must be one of .*cascade, .*parallel'),
        (
            {"MODEL.DETR.DECODER.INTERACTION": ["dehom"]},
            'INTERACTION is "dehom", must be one of .*dehomo, .*none, .*self_attention',
        ),
        ({"MODEL.DETR.DECODER.CROSS_ATTENTION": ["dens"]}, 'CROSS_ATTENTION is "dens", must be one of .*deformable'),
        (
            {"MODEL.DETR.DECODER.QUERY_POSITION": "sine"},
            'QUERY_POSITION is "sine", must be one of .*fixed, .*sine_mlp',
        ),
        ({"MODEL.DETR.MATCHER.COST": ["dear"]}, 'MATCHER.COST is "dear", must be one of .*center_inside'),
        (
            {"MODEL.DETR.ASSIGNER.FINAL": "best"},
            'ASSIGNER.FINAL is "best", must be one of .*align_repeated, .*hungarian',
        ),
        ({**PLUSPLUS, "MODEL.DETR.ASSIGNER.ENCODER": "best"}, 'ASSIGNER.ENCODER is "best", must be one of'),
        ({**PLUSPLUS, "MODEL.DETR.LOSS.ENCODER_CLASSIFICATION": "x"}, 'LOSS.ENCODER_CLASSIFICATION is "x", must be'),
        ({**PLUSPLUS, "MODEL.DETR.MATCHER.COST": []}, "MATCHER.COST has 0 entries"),
        ({"MODEL.DETR.LOSS.CLASSIFICATION": "vocal"}, "LOSS.CLASSIFICATION"),
        ({"MODEL.DETR.ROUTES": ["hybrids"]}, 'ROUTES is "hybrids", must be one of .*hybrid'),
        ({"MODEL.DETR.READ_OUT.NAME": "all"}, 'READ_OUT.NAME is "all", must be one of .*layer'),
        ({"MODEL.DETR.READ_OUT.LAYER": 4}, "READ_OUT.LAYER is 4, must be in 0..3"),
        ({**PATTERNS, "MODEL.DETR.PATTERNS.FUSION": "ful"}, "PATTERNS.FUSION"),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(options, message):
    with pytest.raises(UserError, match=message):
        make_model(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.DETR.QUERIES.CONTENT": "proposal"}, "QUERIES.CONTENT proposal needs queries from the encoder"),
        ({"MODEL.DETR.DECODER.CROSS_ATTENTION": ["none"]}, "CROSS_ATTENTION is none in every layer"),
        (
            {"MODEL.DETR.QUERIES.AUGMENT": "cdn"},
            "AUGMENT cdn needs queries with boxes, .* LearnedQueries .* does not make",
        ),
        (
            {**PLUSPLUS, "MODEL.DETR.QUERIES.AUGMENT": "box_dn"},
            "box_dn needs queries with contents from boxes, which .*learned",
        ),
        ({"MODEL.DETR.QUERIES.CONTENT": "token"}, "QUERIES.CONTENT token needs queries from the encoder"),
        ({**PLUSPLUS, "MODEL.DETR.ROUTES": ["hybrid", "hybrid"]}, "each route can be there once"),
        ({"MODEL.DETR.QUERIES.NAME": "LearnedAnchors"}, "QUERY_POSITION fixed needs queries with position"),
        ({"MODEL.DETR.DECODER.QUERY_POSITION": "sine_mlp"}, "QUERY_POSITION sine_mlp needs queries with boxes"),
        ({"MODEL.DETR.CODEC": "xyzr"}, "CODEC xyzr needs queries with boxes, which .* LearnedQueries does not make"),
        ({"MODEL.DETR.CODEC": "rcnn_delta"}, "CODEC rcnn_delta needs queries with boxes"),
        ({"MODEL.DETR.LOSS.ENCODER_CLASSIFICATION": "soft_focal"}, "LOSS.ENCODER_CLASSIFICATION soft_focal needs"),
        ({"MODEL.DETR.ASSIGNER.ENCODER": "quality_count"}, "ASSIGNER.ENCODER quality_count needs"),
        ({"MODEL.DETR.QUERIES.NUM_TEST": 20}, "NUM_TEST is 20, but .* LearnedQueries is a table of 12 learned queries"),
        ({**PLUSPLUS, "MODEL.DETR.DECODER.INTERACTION": ["dehomo"]}, "and layer 1 has none before it"),
        (
            {
                **PLUSPLUS,
                **PARALLEL,
                "MODEL.DETR.DECODER.INTERACTION": ["self_attention", "dehomo", "self_attention"],
            },
            "and layer 2 has none before it",
        ),
        ({**PLUSPLUS, **PARALLEL, "MODEL.DETR.DECODER.BOX_LAYERS": 1}, "BOX_LAYERS is 1, but in a .*: 0$"),
        ({**PLUSPLUS, **PARALLEL, "MODEL.DETR.DECODER.TEST_LAYERS": 1}, "TEST_LAYERS is 1, but in a .*: 0$"),
        ({**PLUSPLUS, **PARALLEL, "MODEL.DETR.DECODER.BOX_REFINE": False}, "BOX_REFINE is False, but in a .*: True$"),
        ({**PARALLEL, **PLUSPLUS}, "LOOK_FORWARD_TWICE is True, but in a .*: False$"),
        ({**PLUSPLUS, "MODEL.DETR.ROUTES": ["main"]}, "and main always is"),
        ({"MODEL.DETR.DECODER.INTERACTION": ["none", "none"]}, "INTERACTION has 2 entries .* each of 3 layers"),
        ({"MODEL.DETR.MATCHER.COST": []}, "MATCHER.COST has 0 entries"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_when_the_model_is_built(options, message):
    with pytest.raises(UserError, match=message):
        make_model(options)


def test_training_logs_what_the_papers_speak_of(two_images):
    model = make_model({**PLUSPLUS, **PATTERNS, **ASSIGNMENT})
    with EventStorage() as storage:
        model(two_images)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged["positives_per_object/final"] == 1 and logged["positives_per_object/layer1"] >= 1
    assert round(logged["queries_ever_matched"] * 12) in (2, 3)  # two objects here, one there, perhaps in the same slot
    assert 0 < logged["paq/pattern_mean_abs_cos"] < 1 and logged["paq/weight_entropy"] > 0


@assemblies
def test_a_predictor_without_its_dataset_knows_the_class_names(options, tmp_path):
    cfg = make_cfg(options, **{"DATASETS.TEST": ("on_another_machine",), "INPUT.MIN_SIZE_TEST": 256})
    DetrCheckpointer(make_model(options), str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor = DefaultPredictor(cfg)
    instances = predictor(np.zeros((48, 80, 3), dtype=np.uint8))["instances"]
    # Every query and class, unless DH-DETR's generator drops all that score 0.01, suppression takes the ones that
    # overlap, boxes that are no logits lie outside of the image, or an image decides how many queries it has.
    tells_apart = "dehomo" in str(options.get("MODEL.DETR.DECODER.INTERACTION"))
    most = 3 * cfg.MODEL.DETR.QUERIES.NUM
    fewer = ("READ_OUT.NMS_IOU", "QUERIES.KEEP.WHEN", "CODEC", "ASAG.PATCH_SIZE")
    fewer = {f"MODEL.DETR.{key}" for key in fewer} & options.keys()
    wanted = {0} if tells_apart else range(most + 1) if fewer else {most}
    assert instances.image_size == (48, 80) and len(instances) in wanted
    assert {"pred_boxes", "scores", "pred_classes"} <= set(instances.get_fields())
    assert predictor.model.class_names == ("cat", "dog", "owl")
    assert not predictor.metadata.get("thing_classes")  # building a model tells no catalog of it


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 20, 30), dtype=np.uint8), r"shape \(4, 20, 30\)"),
        (np.zeros((20, 30, 3), dtype=np.uint8), "channels stood last"),
        (np.zeros((3, 20, 30), dtype=np.uint16), "uint16"),
        (np.full((3, 20, 30), 4000, dtype=np.float32), "values from 4000 to 4000"),
        (np.zeros((3, 0, 30), dtype=np.uint8), "no pixels"),
        ("image.jpg", "no array"),
    ],
)
def test_an_array_of_another_form_is_refused_with_the_wanted_one(image, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_model(PLUSPLUS).eval()([{"image": image}])
    assert "must be (3, height, width) in RGB" in str(caught.value)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="holds no images"):
        make_model(PLUSPLUS).eval()([])
