# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One image through Deformable DETR R50, ours beside transformers', with the same weights.

python benchmarks/bench_model.py [--device cuda] [--json out.json]
"""

import torch
import transformers
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from measure import arguments, compared, report, time_ms

from paq_detr import add_paq_detr_config
from paq_detr.convert import convert_if_foreign

HEIGHT, WIDTH = 800, 1333
CASES = {
    "single stage": ({}, ["MODEL.DETR.DECODER.BOX_REFINE", False]),
    "box refinement": ({"with_box_refine": True}, []),
}


def their_model(options: dict) -> torch.nn.Module:
    """transformers' default (R50, 6 + 6 layers, 300 queries), random weights."""
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, use_pretrained_backbone=False, backbone=None, **options
    )
    torch.manual_seed(0)
    return transformers.DeformableDetrForObjectDetection(config).eval()


def our_model(theirs: torch.nn.Module, options: list, device: str) -> torch.nn.Module:
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 50, "MODEL.DEVICE", device, *options])
    cfg.MODEL.DETR.CLASS_NAMES = list(theirs.config.id2label.values())
    ours = build_model(cfg).eval()
    weights = convert_if_foreign(theirs.state_dict()).weights
    ours.load_state_dict(weights, strict=True)
    return ours


@torch.inference_mode()
def measured(args):
    image = (torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 255).to(args.device)
    for name, (their_options, our_options) in CASES.items():
        theirs = their_model(their_options).to(args.device)
        ours = our_model(theirs, our_options, args.device)
        pixels = ((image - ours.pixel_mean) / ours.pixel_std)[None]
        expected = theirs(pixel_values=pixels).logits
        memory = ours.encode(ours.preprocess([{"image": image}]))
        found = ours.routes["main"](ours.sources["main"](memory), memory)[-1].logits
        apart = (found - expected).abs().max().item()
        rivals = {
            "ours": lambda ours=ours: ours([{"image": image}]),
            "transformers": lambda theirs=theirs, pixels=pixels: theirs(pixel_values=pixels),
        }
        timings = time_ms(rivals, args)
        yield {"model": name, "image": f"{HEIGHT}x{WIDTH}", "max |logit difference|": apart, **compared(timings)}


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    report(measured(args), args)


if __name__ == "__main__":
    main()
