# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from paq_detr.data import check_batch, check_image_array

GOOD = {
    "uint8": (torch.zeros(3, 8, 9, dtype=torch.uint8), "RGB"),
    "a float": (torch.rand(3, 8, 9) * 255, "BGR"),
    "a double": (torch.rand(3, 8, 9, dtype=torch.float64), "RGB"),
    "an array": (np.full((3, 8, 9), 255, np.uint8), "RGB"),
    "a float array": (np.zeros((3, 8, 9), np.float32), "RGB"),
    "grey": (torch.zeros(1, 8, 9), "L"),
    "one pixel": (torch.zeros(3, 1, 1), "RGB"),
    "very long": (torch.zeros(3, 1, 5000), "RGB"),
    "4 pixels wide": (torch.zeros(3, 4, 4), "RGB"),
    "rounding of a resize": (torch.full((3, 8, 9), 255.4), "RGB"),
}


@pytest.mark.parametrize("image, image_format", GOOD.values(), ids=GOOD)
def test_the_wanted_form_is_taken_as_it_is(image, image_format):
    taken = check_image_array(image, image_format)
    assert torch.equal(taken, torch.as_tensor(image)) and taken.dtype == torch.as_tensor(image).dtype


BAD = {
    "RGBA": (
        torch.zeros(4, 8, 9),
        "RGB",
        r"shape \(4, 8, 9\), as if it had an alpha channel, must be \(3, height",
    ),
    "RGBA, channels last": (np.zeros((8, 9, 4), np.uint8), "RGB", "as if its channels stood last and have an alpha"),
    "channels last": (torch.zeros(8, 9, 3), "RGB", r"shape \(8, 9, 3\), as if its channels stood last, must be \(3"),
    "grey": (torch.zeros(8, 9), "RGB", "as if it were grey, must be"),
    "grey of one channel": (torch.zeros(1, 8, 9), "RGB", "as if it were grey, must be"),
    "two channels": (torch.zeros(2, 8, 9), "BGR", r"has the shape \(2, 8, 9\), must be \(3, height, width\) in BGR"),
    "colour where grey is wanted": (torch.zeros(3, 8, 9), "L", r"must be \(1, height, width\) in L"),
    "a batch": (torch.zeros(1, 3, 8, 9), "RGB", "as if it were a batch, must be"),
    "no height": (torch.zeros(3, 0, 9), "RGB", "has no pixels"),
    "no width": (torch.zeros(3, 8, 0), "RGB", "has no pixels"),
    "16 bits": (np.zeros((3, 8, 9), np.uint16), "RGB", "is of uint16, must be"),
    "int64": (torch.zeros(3, 8, 9, dtype=torch.int64), "RGB", "is of int64, must be"),
    "bool": (torch.zeros(3, 8, 9, dtype=torch.bool), "RGB", "is of bool, must be"),
    "complex": (torch.zeros(3, 8, 9, dtype=torch.complex64), "RGB", "is of complex64, must be"),
    "floats of 16 bits": (torch.full((3, 8, 9), 65535.0), "RGB", "has values from 65535 to 65535, must be"),
    "normalised": (torch.full((3, 8, 9), -2.0), "RGB", "has values from -2 to -2, must be"),
    "NaN": (torch.full((3, 8, 9), float("nan")), "RGB", "has values from nan to nan, must be"),
    "a number": (5, "RGB", r"has the shape \(\), must be"),
    "None": (None, "RGB", "is a NoneType that is no array"),
    "a file name": ("a.png", "RGB", "is a str that is no array"),
    "an array of objects": (np.array([None]), "RGB", "is a ndarray that is no array"),
}


@pytest.mark.parametrize("image, image_format, message", BAD.values(), ids=BAD)
def test_another_form_is_one_sentence_with_the_wanted_one(image, image_format, message):
    with pytest.raises(ValueError, match=f"the picture {message}|the picture .*{message}") as caught:
        check_image_array(image, image_format, "picture")
    assert "\n" not in str(caught.value)


def test_fractions_get_a_warning(caplog):
    check_image_array(torch.rand(3, 8, 9), "RGB")
    assert "the image has no value above" in caplog.text and "unless it holds fractions" in caplog.text


IMAGE = torch.zeros(3, 8, 9)
BATCHES = {
    "a dict": ({"image": IMAGE}, False, "is a dict, must be a list of dicts, each with an 'image'$"),
    "a tensor": (IMAGE[None], False, "is a Tensor, must be a list of dicts"),
    "None": (None, False, "is a NoneType, must be a list"),
    "empty": ([], False, "holds no images"),
    "images alone": ([IMAGE], False, "holds a Tensor, must be a list of dicts"),
    "without image": ([{"height": 3}], False, "has no 'image', must be"),
    "no height": ([{"image": IMAGE, "height": 0}], False, "the height of an entry of the batch is 0, must be above 0"),
    "a text as width": ([{"image": IMAGE, "width": "9"}], False, "the width of .* is '9', must be above 0"),
    "no objects in training": (
        [{"image": IMAGE}],
        True,
        "has no 'instances', .* and, in training, 'instances'",
    ),
}


@pytest.mark.parametrize("batch, training, message", BATCHES.values(), ids=BATCHES)
def test_a_batch_of_another_form_is_one_sentence(batch, training, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_batch(batch, training)
    assert "\n" not in str(caught.value)


def test_a_batch_of_the_wanted_form_is_taken():
    check_batch([{"image": IMAGE}], False)
    check_batch(({"image": IMAGE, "height": torch.tensor(8), "width": 9.5},), False)
    check_batch([{"image": IMAGE, "instances": None, "height": 0}], True)
