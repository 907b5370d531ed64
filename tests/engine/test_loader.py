# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from paq_detr.engine import UserError
from paq_detr.engine.loader import TrainLoader
from paq_detr.engine.rng import rng_state

# Every third image is tall.
DICTS = [{"image_id": i, "width": 10, "height": 20 if i % 3 == 0 else 5} for i in range(10)]


def draw(d):
    """Stands for a mapper: the image and one number of each generator."""
    return d["image_id"], random.random(), np.random.rand(), torch.rand(()).item()


def make(**kwargs):
    return TrainLoader(DICTS, kwargs.pop("mapper", draw), **{"batch_size": 2, "seed": 7, **kwargs})


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def test_an_epoch_holds_every_image_once_and_two_epochs_differ_in_order():
    ids = [item[0] for batch in take(make(), 10) for item in batch]
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert ids[:10] != ids[10:]


def test_the_number_of_workers_changes_nothing():
    assert take(make(num_workers=2), 6) == take(make(), 6)


def test_the_seed_changes_order_and_augmentation():
    assert take(make(seed=8), 6) != take(make(), 6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_resumed_stream_goes_on_exactly(workers, grouped):
    whole = take(make(group_by_aspect=grouped), 9)
    first = make(group_by_aspect=grouped, num_workers=workers)
    assert take(first, 4) == whole[:4]
    second = make(group_by_aspect=grouped, num_workers=workers, seed=0)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == whole[4:]


def test_a_resume_with_another_batch_size_goes_on_at_the_same_image():
    first = make()
    take(first, 2)
    second = make(batch_size=3)
    second.load_state_dict(first.state_dict())
    ids = [item[0] for batch in take(second, 2) for item in batch]
    assert ids == [item[0] for batch in take(make(), 5) for item in batch][4:]


def test_grouped_batches_are_all_wide_or_all_tall():
    for batch in take(make(group_by_aspect=True), 20):
        assert len({item[0] % 3 == 0 for item in batch}) == 1


def test_drawing_images_leaves_the_global_generators_alone():
    before = rng_state()
    take(make(), 3)
    after = rng_state()
    assert before["python"] == after["python"]
    torch.testing.assert_close(before["numpy"][1], after["numpy"][1])
    assert torch.equal(before["torch"], after["torch"])


def test_two_processes_share_the_images_of_one(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append([item for batch in take(make(batch_size=4), 3) for item in batch])
    monkeypatch.undo()
    alone = [item for batch in take(make(batch_size=4), 3) for item in batch]
    assert [item for pair in zip(*shares, strict=True) for item in pair] == alone


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(UserError, match="IMS_PER_BATCH 6 .* 4 processes"):
        make(batch_size=6)
