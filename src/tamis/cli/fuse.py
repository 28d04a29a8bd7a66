"""`tamis fuse`: a bi-encoder's similarity beside a cross-encoder's logit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tamis.cli.model_options import EMBEDDED, add_data_options
from tamis.cli.output import say, show, status, write_json
from tamis.errors import InvalidInput


def add_command(commands: Any) -> None:
    """Adds `fuse` to argparse's subparsers."""
    parser = commands.add_parser(
        "fuse",
        help="add a bi-encoder's similarity to a cross-encoder",
        description="Fit how much of a bi-encoder's similarity is added to a cross-encoder's logit, to queries with "
        "known answers that neither was trained on, and write that into the cross-encoder's folder (fusion.json). "
        'tamis.load(FOLDER) is both models then; with mode="cross-encoder" it is the one alone.',
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the cross-encoder's")
    add("--bi-encoder", default=EMBEDDED, metavar="M", help="a folder, a hub id or `embedded` (default)")
    add_data_options(parser)
    add(
        "--tolerance", type=float, default=0.0, metavar="T",
        help="take the highest weight that gives up at most this share of the nDCG@10 (default: 0); above 0 where the "
        "cross-encoder was trained on texts like these, and will read others",
    )  # fmt: skip
    add(
        "--prior", type=float, metavar="P",
        help="scores are probabilities where this share of passages is relevant (default: the share of BM25's best)",
    )  # fmt: skip
    add(
        "--lexical", type=float, default=0.0, metavar="L",
        help="add the share of the query's words that a passage has, rare ones counting more, with this weight "
        "(default: 0); how rare they are is counted in the data. tamis-mini has 10",
    )  # fmt: skip
    add("--top", type=int, default=100, metavar="N", help="score BM25's best N (default: 100)")
    add("--json", action="store_true", help="the numbers as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Fits and writes.

    Raises:
        InvalidInput: A folder or a number is wrong.
        InvalidData: Rows of the data are wrong: all of them are named.
        MissingExtra: What measures or fits is not installed.
        LoadError: A model cannot be loaded.
    """
    from dataclasses import asdict

    from rich.text import Text

    from tamis import load
    from tamis.evaluation import read_collection
    from tamis.evaluation.collection import check_seed
    from tamis.scorers.overlap import Overlap
    from tamis.training.fusion import count_pieces, fuse, write_fusion

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is no folder; name the one that holds the cross-encoder.")
    for name in ("top", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InvalidInput(f"--{name} is {value}; pass at least 1.")
    check_seed(arguments.seed)
    collections = [read_collection(one, arguments.split) for one in arguments.data]
    if not arguments.lexical >= 0:
        raise InvalidInput(f"--lexical is {arguments.lexical}; pass at least 0.")
    counts = count_pieces(folder, collections) if arguments.lexical else None
    with status("Loading"):
        cross = load(folder, mode="cross-encoder")
        other = None if arguments.bi_encoder == EMBEDDED else arguments.bi_encoder
        similar = load(other, mode="bi-encoder")
    with cross, similar:
        fitted = fuse(
            cross, similar, collections,
            tolerance=arguments.tolerance, prior=arguments.prior, lexical=arguments.lexical,
            overlap=None if counts is None else Overlap(folder, counts),
            top=arguments.top, limit=arguments.limit, seed=arguments.seed, progress=True,
        )  # fmt: skip
    named = Path(arguments.bi_encoder)
    if counts is not None:
        counts.write(folder)
    write_fusion(folder, str(named.resolve()) if named.is_dir() else arguments.bi_encoder, fitted.blend)
    if arguments.json:
        write_json({**asdict(fitted.blend), "quality": {str(key): value for key, value in fitted.quality.items()}})
        return
    for weight, quality in fitted.quality.items():
        say(f"weight {weight:4g}: mean nDCG@10 {quality:.4f}")
    blend = fitted.blend
    show(Text(f"{folder}: weight {blend.weight:g}, scale {blend.scale:.4g}, offset {blend.offset:.4g}"))
