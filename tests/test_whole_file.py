# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from paq_detr.whole_file import whole_file


def test_a_file_is_whole_or_the_old_one_stays(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("old", "new"):
        with whole_file(str(path)) as part, open(part, "w") as file:
            file.write(text)
    with pytest.raises(RuntimeError), whole_file(str(path)) as part, open(part, "w") as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("place", ["nowhere/x", "file/x", "/proc/x"])
def test_a_place_that_takes_no_file_is_an_error_of_the_system_before_anything_is_computed(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught, whole_file(str(tmp_path / place)):
        pytest.fail("the block runs")
    assert caught.value.filename.endswith("x.part")
