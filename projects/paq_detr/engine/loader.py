# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""An endless, shuffled stream of training batches that can continue exactly where a checkpoint left it.

Every image of the stream has a position. The order of epoch e follows from (seed, e), and the augmentation of the image
at position p from (seed, p), whichever process or worker draws it. So a checkpoint needs three numbers, and the number
of workers changes nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.utils import comm
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from ..data.mapper import DetrDatasetMapper
from ..errors import UserError
from .rng import seeded_rng

logger = logging.getLogger(__name__)


class NamedFaults:
    """The batches of ``loader``; an image that cannot be read ends them with one sentence, as UserError: a training
    looks at the headers of the first pictures alone before it starts."""

    def __init__(self, loader: Iterable):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.loader
        except ValueError as error:  # the mapper's, perhaps from a worker; the last line names the file
            fault = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
            raise UserError(f"{fault}; paq-detr check-data looks at every picture for this and more.") from error


class TrainLoader:
    """Iterable of batches, each the list of ``mapper(dataset dict)`` of this process's share of the images.

    Args:
        dicts: Detectron2 dataset dicts.
        mapper: callable on one (copied) dataset dict; its randomness comes from the global generators. Where it has an
            attribute ``others``, that becomes the sequence of all dataset dicts.
        batch_size: images in a batch of all processes together.
        num_workers: worker processes; 0 loads in this process.
        seed: of the order and of the augmentation.
        late: a place in the stream, counted in images, and the mapper from there on.
        group_by_aspect: batches hold either wide or tall images, which need less padding; the dicts' ``width`` and
            ``height`` decide.

    Raises:
        UserError: if the batch cannot be divided among the processes, or there are no images.
    """

    def __init__(
        self,
        dicts: Sequence[dict],
        mapper: Callable[[dict], Any],
        *,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        late: tuple[int, Callable[[dict], Any]] | None = None,
        group_by_aspect: bool = False,
    ):
        world = comm.get_world_size()
        if batch_size < 1 or batch_size % world:
            raise UserError(f"SOLVER.IMS_PER_BATCH {batch_size} cannot be divided among {world} processes.")
        if not len(dicts):
            raise UserError("The training datasets hold no image.")
        self.tall = [group_by_aspect and d["height"] >= d["width"] for d in dicts]
        self.dataset = _SeededDataset(DatasetFromList(list(dicts), copy=False), mapper, seed, late)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.start = 0  # position in the stream at which no batch was begun
        self.batches = 0  # batches that this process has consumed since

    def __iter__(self) -> Iterator[list]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Resumed(self),
            num_workers=self.num_workers,
            collate_fn=_as_list,
            generator=Generator(),  # else every loader draws its base seed from the global generator
        )
        for batch in loader:
            self.batches += 1
            yield batch

    def keys(self) -> Iterator[list[tuple[int, int]]]:
        """(position in the stream, index of the image) of each batch of this process, from ``start`` on."""
        share = self.batch_size // comm.get_world_size()
        wide, tall = [], []
        order, epoch = None, -1
        for position in itertools.count(self.start + comm.get_rank(), comm.get_world_size()):
            if position // len(self.tall) != epoch:
                epoch = position // len(self.tall)
                order = np.random.default_rng([self.dataset.seed, epoch]).permutation(len(self.tall))
            index = int(order[position % len(self.tall)])
            group = tall if self.tall[index] else wide
            group.append((position, index))
            if len(group) == share:
                yield list(group)
                group.clear()

    @staticmethod
    def images_seen(state: dict[str, int]) -> int:
        """By all processes, of what :meth:`state_dict` returned."""
        return state["start"] + state["batches"] * state["batch_size"]

    def state_dict(self) -> dict[str, int]:
        return {
            "seed": self.dataset.seed,
            "start": self.start,
            "batches": self.batches,
            "batch_size": self.batch_size,
            "world_size": comm.get_world_size(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that ``state`` had seen.

        Exact with the same batch size and number of processes; with others it goes on at the same image count.
        """
        self.dataset.seed = state["seed"]
        self.start, self.batches = state["start"], state["batches"]
        if (state["batch_size"], state["world_size"]) != (self.batch_size, comm.get_world_size()):
            self.start, self.batches = self.images_seen(state), 0
            logger.warning(
                "The checkpoint was trained with %d images per batch on %d processes, this run has %d on %d: the data "
                "order goes on at image %d, but not in the same batches.",
                *(state["batch_size"], state["world_size"], self.batch_size, comm.get_world_size(), self.start),
            )


class _Resumed:
    """Batch sampler of a loader that leaves out what was consumed."""

    def __init__(self, loader: TrainLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self.loader.keys(), self.loader.batches, None)


class _SeededDataset(Dataset):
    """Maps (position, index) to the mapped image, with randomness that follows from (seed, position) alone."""

    def __init__(
        self,
        dicts: Dataset,
        mapper: Callable[[dict], Any],
        seed: int,
        late: tuple[int, Callable[[dict], Any]] | None,
    ):
        self.dicts, self.mapper, self.seed, self.late = dicts, mapper, seed, late
        if hasattr(mapper, "others"):
            mapper.others = dicts

    def __getitem__(self, key: tuple[int, int]) -> Any:
        position, index = key
        mapper = self.late[1] if self.late is not None and position >= self.late[0] else self.mapper
        with seeded_rng(self.seed, position):
            return mapper(self.dicts[index])


def _as_list(batch: list) -> list:
    return batch


def late_mapper(cfg: CfgNode, num_images: int, mapper: DetrDatasetMapper) -> tuple[int, DetrDatasetMapper] | None:
    """From which place in the stream on ``INPUT.MIX_OFF_EPOCHS`` has pictures mixed no more, and the mapper there."""
    solver, off = cfg.SOLVER, cfg.INPUT.MIX_OFF_EPOCHS
    if not off or not mapper.before.mixes:
        return None
    images = solver.EPOCHS * num_images if solver.EPOCHS else solver.MAX_ITER * solver.IMS_PER_BATCH
    mixed = int(images - off * num_images)
    if mixed <= 0:
        logger.warning("INPUT.MIX_OFF_EPOCHS %d is as long as the whole training: no pictures are mixed", off)
    return mixed, mapper.without_mixing()


def build_train_loader(cfg: CfgNode) -> tuple[TrainLoader, int]:
    """The loader of ``cfg.DATASETS.TRAIN`` and the number of its images.

    Raises:
        UserError: a dataset is missing or empty, or the batch cannot be divided among the processes.
    """
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name a dataset to train on.")
    try:
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    except FileNotFoundError as error:
        raise UserError(f"A file of DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} is missing: {error}") from error
    except AssertionError as error:  # Detectron2's own check for empty datasets
        raise UserError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}: {error}") from error
    mapper = DetrDatasetMapper(cfg, True)
    loader = TrainLoader(
        dicts,
        mapper,
        late=late_mapper(cfg, len(dicts), mapper),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )
    return loader, len(dicts)
