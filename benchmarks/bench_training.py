# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Training steps of Deformable-DETR++ R50 on random pictures of one size: images per second and peak memory.

    python benchmarks/bench_training.py [--device cuda] [--size 800 1333] [--types float32] [--json out.json]

A step is forward, matching, losses, backward, clipping and AdamW. Random weights, batch 2, 12 objects an image of 80
classes, in float32 and under bfloat16 autocast. Beside ours: ours with the pure-torch operators, and transformers'
DeformableDetr (two-stage, box refinement, its own losses), where it is installed. All freeze the stem and first stage.
"""

import gc
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from measure import arguments, parser_of, report

from paq_detr import add_paq_detr_config
from paq_detr.engine.merge import merge_file
from paq_detr.engine.solver import build_optimizer
from paq_detr.ops import _extension

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "Deformable-DETR++": "configs/coco/deformable_detr_plusplus_r50_12ep.yaml",
    "PaQ-Deformable-DETR++": "configs/coco/paq_deformable_detr_plusplus_r50_12ep.yaml",
}
TINY = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.DETR.ENCODER.NUM_LAYERS", 1]
TINY += ["MODEL.DETR.DECODER.NUM_LAYERS", 2, "MODEL.DETR.QUERIES.NUM", 50]
BATCH, OBJECTS, CLASSES, CLIP = 2, 12, 80, 0.1


def batch_of(height, width, device):
    """Pictures and objects in Detectron2's form; boxes xyxy in pixels."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(BATCH):
        low = torch.rand(OBJECTS, 2, generator=generator) * 0.7
        corners = torch.cat([low, low + 0.05 + 0.2 * torch.rand(OBJECTS, 2, generator=generator)], -1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(corners * torch.tensor([width, height, width, height]))
        instances.gt_classes = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        image = torch.rand(3, height, width, generator=generator) * 255
        batch.append({"image": image.to(device), "instances": instances.to(device)})
    return batch


def our_step(config, batch, args):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    merge_file(cfg, str(ROOT / config))
    names = [str(i) for i in range(CLASSES)]
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.DETR.CLASS_NAMES", names, *(TINY if args.tiny else [])])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    return lambda: sum(model(batch).values()), build_optimizer(cfg, model)


def their_step(batch, args):
    import transformers

    sizes = (
        {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 50, "two_stage_num_proposals": 50}
        if args.tiny
        else {}
    )
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, use_pretrained_backbone=False, backbone=None,
        with_box_refine=True, two_stage=True, auxiliary_loss=True, num_labels=CLASSES, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, dropout=0.0, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config).to(args.device).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not re.search(r"embedder|encoder\.stages\.0\.", name))
    pixels = torch.stack([x["image"] for x in batch]) / 255
    height, width = pixels.shape[-2:]
    labels = []
    for x in batch:
        boxes = x["instances"].gt_boxes.tensor / pixels.new_tensor([width, height, width, height])
        centres = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], -1)
        labels.append({"class_labels": x["instances"].gt_classes, "boxes": centres})
    trained = [p for p in model.parameters() if p.requires_grad]
    return lambda: model(pixel_values=pixels, labels=labels).loss, torch.optim.AdamW(trained, lr=2e-4)


def time_steps(loss_of, optimizer, dtype, args):
    """Seconds of each step after the warm-up, and the last loss."""
    kind = torch.device(args.device).type
    wait = torch.cuda.synchronize if kind == "cuda" else lambda: None
    now = time.process_time if args.clock == "cpu" else time.perf_counter
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seconds = []
    for step in range(args.steps + args.warm_up):
        wait()
        start = now()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        wait()
        if step >= args.warm_up:
            seconds.append(now() - start)
    return seconds, loss.item()


def measured(args):
    height, width = (96, 128) if args.tiny else args.size
    batch = batch_of(height, width, args.device)
    native = _extension.use_native
    rivals = {name: (native, lambda c=config: our_step(c, batch, args)) for name, config in CONFIGS.items()}
    rivals["transformers' DeformableDetr"] = (native, lambda: their_step(batch, args))
    rivals["Deformable-DETR++, torch operators"] = (lambda *_: False, rivals["Deformable-DETR++"][1])
    for dtype in args.types:
        for name, (use_native, build) in rivals.items():
            row = {"model": name, "type": dtype, "image": f"{height}x{width}", "batch": BATCH}
            _extension.use_native = use_native
            try:
                if args.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                with EventStorage():
                    seconds, loss = time_steps(*build(), dtype, args)
            except Exception as error:  # a rival's own, of any kind: the others still count
                if "transformers" not in name:
                    raise
                print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            finally:
                _extension.use_native = native
            row |= {"ms a step": 1e3 * statistics.median(seconds), "fastest ms": 1e3 * min(seconds), "loss": loss}
            row["images/s"] = BATCH / statistics.median(seconds)
            if args.device.startswith("cuda"):
                row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
            gc.collect()
            if args.device.startswith("cuda"):
                torch.cuda.empty_cache()
            yield row


def main():
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--types", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    args = arguments("", parser)
    report(measured(args), args)


if __name__ == "__main__":
    main()
