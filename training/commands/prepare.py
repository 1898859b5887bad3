"""python -m training prepare {instances,scenes,phrasecut,refcoco,voc}: a data set -> a store."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command; one data set is one subcommand."""
    prepare = commands.add_parser("prepare", help="a data set -> a phrase store")
    data_sets = prepare.add_subparsers(required=True, metavar="DATA_SET")

    _declare_instances(data_sets)
    _declare_scenes(data_sets)
    _declare_phrasecut(data_sets)
    _declare_refcoco(data_sets)
    _declare_voc(data_sets)


def _declare_instances(data_sets: Commands) -> None:
    from training.data.coco_ids import COCO_ID_MODES

    instances = data_sets.add_parser(
        "instances", help="any COCO-format instance file, phrases made from templates"
    )
    instances.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    instances.add_argument(
        "--images", type=Path, help="root of its file names; default: its folder"
    )
    instances.add_argument("--out", type=Path, required=True, help="the store to write")
    instances.add_argument("--seed", type=int, default=0)
    instances.add_argument(
        "--split", default="train", help="train, val or test: of image rows that carry no `split`"
    )
    instances.add_argument(
        "--source", default="", help="a name for the photos of image rows that carry no `source`"
    )
    instances.add_argument(
        "--sources", default="", help="only photos of these sources, separated by commas"
    )
    instances.add_argument(
        "--discriminative",
        action="store_true",
        help="only photos with phrases that tell things of a class apart, and more of these",
    )
    instances.add_argument(
        "--loose-colours",
        action="store_true",
        help="name colours also where light and shade leave some doubt: more phrases of colour",
    )
    instances.add_argument(
        "--coco-ids",
        choices=COCO_ID_MODES,
        default="auto",
        help="which photos are COCO's, so that no data set trains on another's test photos: "
        "by `coco_id`, `coco_url` or file name; every image by its id; none",
    )
    instances.set_defaults(run=_instances)


def _instances(options: argparse.Namespace) -> None:
    from training.data.coco_annotations import RowDefaults
    from training.prepare import prepare_instances

    images = options.images or options.annotations.parent
    defaults = RowDefaults(options.split, options.source, options.coco_ids)
    report = prepare_instances(
        options.annotations,
        images,
        options.out,
        seed=options.seed,
        defaults=defaults,
        sources=[name.strip() for name in options.sources.split(",") if name.strip()],
        discriminative=options.discriminative,
        loose_colours=options.loose_colours,
    )
    print(report.text())


def _declare_scenes(data_sets: Commands) -> None:
    scenes = data_sets.add_parser(
        "scenes", help="layouts with exact labels, made of an instance file's cut-out objects"
    )
    scenes.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    scenes.add_argument("--images", type=Path, help="root of its file names; default: its folder")
    scenes.add_argument("--out", type=Path, required=True, help="the store to write")
    scenes.add_argument("--train", type=int, default=8000, help="layouts of training photos")
    scenes.add_argument("--val", type=int, default=400, help="layouts of validation photos")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.set_defaults(run=_scenes)


def _scenes(options: argparse.Namespace) -> None:
    from training.prepare_scenes import prepare_scenes

    images = options.images or options.annotations.parent
    counts = {"train": options.train, "val": options.val}
    print(prepare_scenes(options.annotations, images, options.out, counts, options.seed).text())


def _declare_phrasecut(data_sets: Commands) -> None:
    phrasecut = data_sets.add_parser("phrasecut", help="PhraseCut, every split in one store")
    phrasecut.add_argument("--root", type=Path, required=True, help="the folder VGPhraseCut_v0")
    phrasecut.add_argument("--out", type=Path, required=True, help="the store to write")
    phrasecut.add_argument(
        "--splits",
        default="train,val,test,miniv",
        help="separated by commas; with val and miniv the store also has val_miniv, both together",
    )
    phrasecut.set_defaults(run=_phrasecut)


def _phrasecut(options: argparse.Namespace) -> None:
    from training.prepare_phrasecut import prepare_phrasecut

    splits = [name.strip() for name in options.splits.split(",") if name.strip()]
    print(prepare_phrasecut(options.root, options.out, splits).text())


def _declare_refcoco(data_sets: Commands) -> None:
    refcoco = data_sets.add_parser("refcoco", help="RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO")
    refcoco.add_argument(
        "--refs", type=Path, required=True, help="refs(unc).p, refs(umd).p, ... or gRefCOCO's JSON"
    )
    refcoco.add_argument(
        "--instances", type=Path, help="its masks; default: instances.json beside it"
    )
    refcoco.add_argument("--images", type=Path, required=True, help="COCO's train2014")
    refcoco.add_argument("--out", type=Path, required=True, help="the store to write")
    refcoco.add_argument("--name", help="the set's name; default: the folder of --refs")
    refcoco.set_defaults(run=_refcoco)


def _refcoco(options: argparse.Namespace) -> None:
    from training.prepare_refcoco import prepare_refcoco

    instances = options.instances or options.refs.parent / "instances.json"
    report = prepare_refcoco(
        options.refs, instances, options.images, options.out, name=options.name
    )
    print(report.text())


def _declare_voc(data_sets: Commands) -> None:
    voc = data_sets.add_parser("voc", help="PASCAL VOC, phrases made from templates")
    voc.add_argument("--root", type=Path, required=True, help="as VOCdevkit/VOC2012")
    voc.add_argument("--out", type=Path, required=True, help="the store to write")
    voc.add_argument(
        "--splits",
        default="train,val",
        help="lists of ImageSets/Segmentation, separated by commas; trainval is stored as train",
    )
    voc.add_argument("--seed", type=int, default=0)
    voc.set_defaults(run=_voc)


def _voc(options: argparse.Namespace) -> None:
    from training.prepare_voc import prepare_voc

    splits = [name.strip() for name in options.splits.split(",") if name.strip()]
    print(prepare_voc(options.root, options.out, splits, seed=options.seed).text())
