# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What paths, folders, patterns, videos and cameras stand for."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from paq_detr.errors import UserError
from paq_detr.predict.sources import count_frames, find_sources, frames


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    for name in ("in/b.jpg", "in/a.PNG", "in/.hidden.png", "in/deep/a.png", "other/b.jpg"):
        save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(*wanted):
    return [source.name for source in find_sources([str(path) for path in wanted])]


def test_a_folder_stands_for_its_pictures_and_a_pattern_for_what_it_matches(tree):
    assert names(tree / "in") == ["a.PNG", "b.jpg"]
    assert names(tree / "in" / "**" / "*.png") == ["a.png"]
    assert names(tree / "*" / "b.jpg") == ["in/b.jpg", "other/b.jpg"]  # else one would write over the other


def test_a_file_given_twice_counts_once(tree):
    assert names(tree / "in" / "b.jpg", tree / "in", f"{tree}/in/../in/b.jpg") == ["b.jpg", "a.PNG"]


@pytest.mark.parametrize(
    "source, message",
    [
        ("empty", "The folder .*empty is empty.$"),
        ("in/deep/..", None),
        ("in/b.jpgg", r"The source .*in/b.jpgg does not exist \(did you mean .*in/b.jpg\?\).$"),
        ("in/*.txt", r"The source .*\*.txt: 1 files match, none of them a picture.$"),
        ("in/*.gif", r"The source .*\*.gif: no file matches.$"),
        (".", r"There are no pictures in the folder .*; those of its folders are found by '.*/\*\*/\*.jpg'.$"),
    ],
)
def test_what_leads_nowhere_is_one_sentence(tree, source, message):
    if message is None:
        assert names(f"{tree}/{source}") == ["a.PNG", "b.jpg"]
        return
    with pytest.raises(UserError, match=message) as caught:
        find_sources([f"{tree}/{source}"])
    assert "\n" not in str(caught.value)


def test_an_address_is_to_be_downloaded():
    with pytest.raises(UserError, match="https://example.com/a.jpg is an address: download it first"):
        find_sources(["https://example.com/a.jpg"])


def test_a_broken_picture_is_a_frame_with_a_fault(tree):
    (tree / "in" / "c.jpg").write_bytes(b"no picture")
    seen = list(frames(find_sources([str(tree / "in")])))
    assert [frame.pixels is None for frame in seen] == [False, False, True]
    assert "c.jpg cannot be read: it is no picture of a known format" in seen[2].fault


class Video:
    """OpenCV's, of three frames whose blue is their number."""

    def __init__(self, path):
        self.left = [] if path == 9 or "broken" in str(path) else [0, 1, 2]
        self.opened = bool(self.left) or "no_frames" in str(path)

    def isOpened(self):
        return self.opened

    def get(self, key):
        return {1: 24.0, 2: 3.0}[key]

    def read(self):
        if not self.left:
            return False, None
        image = np.zeros((4, 6, 3), np.uint8)
        image[..., 0] = self.left.pop(0)
        return True, image

    def release(self):
        pass


@pytest.fixture
def cv2(monkeypatch):
    fake = SimpleNamespace(VideoCapture=Video, CAP_PROP_FPS=1, CAP_PROP_FRAME_COUNT=2)
    monkeypatch.setitem(sys.modules, "cv2", fake)


def test_a_video_gives_its_frames_in_rgb(tree, cv2):
    (tree / "v.mp4").write_bytes(b"")
    sources = find_sources([str(tree / "v.mp4"), str(tree / "in" / "b.jpg")])
    seen = list(frames(sources))
    assert [(frame.source.name, frame.number, frame.per_second) for frame in seen[:3]] == [
        ("v.mp4", number, 24.0) for number in range(3)
    ]
    assert [frame.pixels[0, 0].tolist() for frame in seen[:3]] == [[0, 0, number] for number in range(3)]
    assert len(seen) == 4 and count_frames(sources) == 4


def test_a_number_is_a_camera_whose_frames_nobody_counts(cv2):
    (source,) = sources = find_sources(["0"])
    assert (source.name, source.kind, count_frames(sources)) == ("camera_0", "camera", None)
    with pytest.raises(UserError, match="The camera 9 cannot be opened: there is none of this number"):
        find_sources(["9"])


def test_a_video_that_cannot_be_opened_is_said_at_once(tree, cv2):
    (tree / "broken.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="The video .*broken.mp4 cannot be opened"):
        find_sources([str(tree / "in"), str(tree / "broken.mp4")])


def test_videos_need_opencv_and_pictures_do_not(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tree / "v.mp4").write_bytes(b"")
    assert names(tree / "in") == ["a.PNG", "b.jpg"]
    with pytest.raises(UserError, match="Videos and cameras need OpenCV: pip install"):
        find_sources([str(tree / "v.mp4")])
