# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes a COCO json's content in other formats, pictures included; each gives an entry of DATASETS.FILES but its
name."""

import os
import shutil
from xml.sax.saxutils import escape


def _copy(content, pictures, folder):
    folder.mkdir(parents=True)
    for image in content["images"]:
        shutil.copy(os.path.join(pictures, image["file_name"]), folder)


def _of_image(content, image):
    return [a for a in content["annotations"] if a["image_id"] == image["id"]]


def _stem(image):
    return os.path.splitext(image["file_name"])[0]


def write_coco(content, pictures, folder):
    import json

    _copy(content, pictures, folder / "images")
    (folder / "annotations.json").write_text(json.dumps(content))
    return {"path": str(folder / "annotations.json")}


def write_yolo(content, pictures, folder):
    """Ids in the order of COCO's; crowds are left out, and polygons are written where there is just one."""
    _copy(content, pictures, folder / "images" / "train")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    number = {category["id"]: place for place, category in enumerate(categories)}
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = []
        for annotation in _of_image(content, image):
            polygons = annotation.get("segmentation")
            if polygons:
                (points,) = polygons
                values = [value / (height if i % 2 else width) for i, value in enumerate(points)]
            else:
                x, y, w, h = annotation["bbox"]
                values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            if not annotation.get("iscrowd"):
                lines.append(f"{number[annotation['category_id']]} {' '.join(map(repr, values))}\n")
        if lines:
            (labels / f"{_stem(image)}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {category['name']}\n" for i, category in enumerate(categories))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames:\n{names}")
    return {"path": str(folder / "data.yaml"), "split": "train"}


def write_voc(content, pictures, folder, first=1):
    """Pixels counted from ``first``; crowds are difficult ones."""
    _copy(content, pictures, folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        objects = ""
        for annotation in _of_image(content, image):
            x, y, w, h = annotation["bbox"]
            box = {"xmin": x + first, "ymin": y + first, "xmax": x + w, "ymax": y + h}
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
            name, difficult = escape(names[annotation["category_id"]]), annotation.get("iscrowd", 0)
            objects += (
                f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"
            )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{image['file_name']}</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{_stem(image)}.xml").write_text(text)
    stems = "".join(f"{_stem(image)}\n" for image in content["images"])
    (folder / "ImageSets" / "Main" / "train.txt").write_text(stems)
    return {"path": str(folder), "split": "train"}


def write_csv(content, pictures, folder, header=False):
    """Crowds are left out."""
    _copy(content, pictures, folder / "images")
    names = {category["id"]: category["name"] for category in content["categories"]}
    lines = ["image,x1,y1,x2,y2,class,image_width,image_height\n"] if header else []
    for image in content["images"]:
        size, found = f"{image['width']},{image['height']}", False
        for annotation in _of_image(content, image):
            x, y, w, h = annotation["bbox"]
            if not annotation.get("iscrowd"):
                box = f"{x!r},{y!r},{x + w!r},{y + h!r}"
                lines.append(f'{image["file_name"]},{box},"{names[annotation["category_id"]]}",{size}\n')
                found = True
        if not found:
            lines.append(f"{image['file_name']},,,,,,{size}\n")
    (folder / "annotations_train.csv").write_text("".join(lines))
    return {"path": str(folder / "annotations_train.csv")}


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "csv": write_csv}
