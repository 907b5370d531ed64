# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A page in the browser to try a run on pictures: ``paq-detr demo --web RUN``."""

from __future__ import annotations

import argparse
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..drawing import draw_detections
from ..errors import UserError
from ..predict import Detector, Result

if TYPE_CHECKING:
    import gradio

LOWEST = 0.05  # what scores less is not kept, however far the slider goes down
_SIDE = 960  # pixels that a small picture is enlarged to at most
_INFO = "Objects that score less are not shown."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--web", metavar="RUN", help="in place of all that: a page in the browser that tries this run")
    parser.add_argument("--host", default="127.0.0.1", help="of the page; 0.0.0.0: other machines too")
    parser.add_argument("--port", type=int, default=7860, help="of the page (default: 7860)")


def serve(run: str, host: str, port: int) -> None:
    """Show the page until Ctrl-C.

    Raises:
        UserError: gradio is missing, or as of ``Detector``.
    """
    if find_spec("gradio") is None:
        raise UserError("demo --web needs gradio: pip install 'paq_detr[web]'.")
    page = build_page(Detector(run))
    page.launch(server_name=host, server_port=port, share=False, max_file_size="20mb")


def build_page(detector: Detector) -> gradio.Blocks:
    """The page; ``launch()`` shows it."""
    import gradio as gr

    def look(path: str | None, threshold: float, names: list[str]) -> tuple:
        if path is None:
            return None, None, "", []
        try:
            result = detector.predict(path, threshold=LOWEST)
        except UserError as error:
            raise gr.Error(str(error)) from error
        return result, *show(result, threshold, names)

    def show(result: Result | None, threshold: float, names: list[str]) -> tuple:
        if result is None:
            return None, "", []
        kept = chosen(result, threshold, names)
        rows = [[name, round(float(score), 3), *box] for name, score, box in
                zip(kept.names, kept.scores, kept.boxes.round().astype(int).tolist())]  # fmt: skip
        return drawn_large(kept), counted(kept), rows

    with gr.Blocks(title="paq_detr", analytics_enabled=False) as page:
        gr.Markdown(f"## paq_detr\n`{detector.run.weights}` on {detector.cfg.MODEL.DEVICE}")
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(
                    label="Picture", type="filepath", height=320, sources=["upload", "clipboard"], buttons=[]
                )
                threshold = gr.Slider(LOWEST, 1, 0.3, step=0.01, label="Threshold", info=_INFO)
                names = gr.Dropdown(list(detector.class_names), multiselect=True, label="Classes",
                                    info="None chosen: all.")  # fmt: skip
            with gr.Column(scale=2):
                drawn = gr.Image(label="What was found", show_label=False, interactive=False,
                                 buttons=["download", "fullscreen"])  # fmt: skip
                text = gr.Markdown()
                table = gr.Dataframe(headers=["class", "score", "x0", "y0", "x1", "y1"], interactive=False,
                                     label="Best first, in pixels", max_height=240)  # fmt: skip
        shown = [drawn, text, table]
        picture.change(look, [picture, threshold, names], [state, *shown])
        threshold.release(show, [state, threshold, names], shown)
        names.change(show, [state, threshold, names], shown)
    return page


def chosen(result: Result, threshold: float, names: list[str]) -> Result:
    """What scores at least ``threshold`` and is of one of the classes; no names: of any."""
    keep: Any = result.scores >= threshold
    if names:
        keep &= np.isin(result.names, names)
    return Result(result.instances[torch.from_numpy(keep)], result.class_names, result.image, result.path)


def drawn_large(result: Result) -> Image.Image:
    """The picture with what was found, small ones enlarged first, so that lines and names stay thin."""
    factor = _SIDE // max(result.size)
    if factor < 2 or result.instances.has("pred_masks"):
        return result.draw()
    large = result.image.repeat(factor, 0).repeat(factor, 1)
    return draw_detections(large, result.boxes * factor, result.classes, result.scores, result.class_names)


def counted(result: Result) -> str:
    """How many of each class, as a line of Markdown."""
    counts = Counter(result.names).most_common()
    return ", ".join(f"**{count}** {name}" for name, count in counts) or "Nothing scores that much."
