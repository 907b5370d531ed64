# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import importlib.util

import numpy as np
import pytest
from PIL import Image

from paq_detr import cli
from paq_detr.demo import web

from ..predict.conftest import NAMES, picture


def test_what_is_shown_scores_enough_and_is_of_the_classes(detector):
    result = detector.predict(picture(), 0.05)
    kept = web.chosen(result, 0.5, ["cat", "dog"])
    assert len(kept) == np.sum((result.scores >= 0.5) & np.isin(result.names, ["cat", "dog"])) > 0
    assert len(web.chosen(result, 0.05, [])) == len(result)
    assert web.counted(web.chosen(result, 1.1, [])) == "Nothing scores that much."


def test_small_pictures_are_enlarged(detector):
    result = detector.predict(picture(), 0.5)
    assert len(result) and web.drawn_large(result).size == (80 * 12, 64 * 12)
    wide = detector.predict(picture(width=600), 0.5)
    assert web.drawn_large(wide).size == (600, 64)


def test_a_missing_gradio_is_said(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert cli.main(["demo", "--web", str(run_folder)]) == 2
    assert "demo --web needs gradio: pip install 'paq_detr[web]'." in capsys.readouterr().err


@pytest.mark.slow
def test_a_browser_sees_what_was_found(detector, tmp_path):
    """Chromium by playwright, its own or the system's: a picture is sent, and the slider and the classes filter."""
    for name in ("gradio", "playwright"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    from playwright.sync_api import expect, sync_playwright

    Image.fromarray(picture()).save(tmp_path / "a.png")
    result = detector.predict(picture(), 0.05)
    page = web.build_page(detector)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        with sync_playwright() as playwright:
            browser = launched(playwright)
            tab = browser.new_page()
            tab.goto(url)
            tab.set_input_files("input[type=file]", tmp_path / "a.png")
            line = web.counted(web.chosen(result, 0.3, [])).replace("**", "")
            expect(tab.get_by_text(line)).to_be_visible(timeout=60_000)
            tab.get_by_label("Classes").click()
            tab.get_by_role("option", name=NAMES[0]).first.click()
            line = web.counted(web.chosen(result, 0.3, NAMES[:1])).replace("**", "")
            expect(tab.get_by_text(line)).to_be_visible(timeout=60_000)
            browser.close()
    finally:
        page.close()


def launched(playwright):
    import shutil

    own = shutil.which("chromium") or shutil.which("google-chrome")
    return playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
