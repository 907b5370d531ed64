# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One image through Deformable DETR R50 with the same weights: transformers' model, that patched, and ours.

    python benchmarks/bench_model.py [--device cuda] [--json out.json]

"patched" is transformers' model within ``ops.patch_transformers()``, which takes its sampling over and nothing else.
"""

import torch
import transformers
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from measure import arguments, compared, report, time_ms

from paq_detr import add_paq_detr_config, ops
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
    height, width = (96, 128) if args.tiny else (HEIGHT, WIDTH)
    image = (torch.rand(3, height, width, generator=torch.Generator().manual_seed(1)) * 255).to(args.device)
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
            "patched": lambda theirs=theirs, pixels=pixels: patched(theirs, pixels),
        }
        apart = {"ours": apart, "patched": (patched(theirs, pixels).logits - expected).abs().max().item()}
        timings = time_ms(rivals, args)
        own = compared({rival: timings[rival] for rival in ("ours", "transformers")})
        row = {"model": name, "image": f"{height}x{width}", **own, "patched ms": timings["patched"].best}
        row["patched speed-up"] = round(timings["transformers"].best / timings["patched"].best, 1)
        yield row | {f"{rival} max |logit difference|": difference for rival, difference in apart.items()}


def patched(model, pixels):
    with ops.patch_transformers():
        return model(pixel_values=pixels)


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    report(measured(args), args)


if __name__ == "__main__":
    main()
