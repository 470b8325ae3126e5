"""Command line: python -m emoji_xl artwork | examples | train | judge | sheet | report."""

import argparse
import logging
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from emoji_xl.artwork import (
    match_pictures,
    read_manifest,
    read_tags,
    summary,
    write_manifest,
    write_pack,
)
from emoji_xl.errors import RunError
from emoji_xl.examples import write_examples
from emoji_xl.judge import JUDGES, KINDS
from emoji_xl.recipe import Recipe, size_named
from emoji_xl.report import write_report
from emoji_xl.sheet import pair_sheet, spread
from emoji_xl.stages import MANIFEST, make_base, make_judge, make_vae, train_pictures

RUN = Path("runs/emoji-xl")
PACK = RUN / "artwork.zip"
MODEL = Path("models/emoji-xl")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="python -m emoji_xl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    artwork = commands.add_parser("artwork", help="fetch, match and render the artwork")
    artwork.add_argument("--cache", type=Path, default=Path("runs/npm"))
    artwork.add_argument("--pack", type=Path, default=PACK)

    examples = commands.add_parser("examples", help="write the example folders to train on")
    examples.add_argument("--pack", type=Path, default=PACK)
    examples.add_argument("--out", type=Path, default=Path("examples"))

    train = commands.add_parser("train", help="train one stage of the base")
    train.add_argument("--stage", choices=("vae", "unet"), required=True)
    train.add_argument("--init", type=Path, help="pipeline folder to start the unet stage from")
    train.add_argument("--dropout", type=float, default=0.0, help="of the unet stage; 0")
    add_training(train, minutes=25.0, batch=512)

    judge = commands.add_parser("judge", help="train and calibrate a judge of concept and style")
    judge.add_argument("--name", choices=tuple(KINDS), default="dev")
    judge.add_argument("--vae", type=Path, default=MODEL / "vae", help="the base's autoencoder")
    judge.add_argument("--out", type=Path, default=RUN / "judges")
    add_training(judge, minutes=5.0, batch=256)

    sheet = commands.add_parser("sheet", help="draw 48 known pairs with a trained base")
    sheet.add_argument("model", type=Path)
    sheet.add_argument("out", type=Path)

    report = commands.add_parser("report", help="measure a trained base with the reporting judge")
    report.add_argument("--model", type=Path, default=MODEL)
    report.add_argument("--judge", type=Path, default=JUDGES / "report")
    report.add_argument(
        "--images", type=positive, default=200, help="at most so many of each group"
    )
    report.add_argument("--sheets", type=Path, default=RUN / "report")
    report.add_argument("--device", default=best_device())
    report.add_argument("--json", type=Path, default=RUN / "report" / "report.json")
    return parser


def add_training(parser: argparse.ArgumentParser, *, minutes: float, batch: int) -> None:
    """Add what all training takes."""
    parser.add_argument(
        "--minutes", type=float, default=minutes, help=f"wall-clock time in all; {minutes:g}"
    )
    parser.add_argument("--save-minutes", type=float, default=2.0, help="time between saves; 2")
    parser.add_argument("--batch", type=int, default=batch, help=f"pictures a step; {batch}")
    parser.add_argument("--pack", type=Path, default=PACK)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--run", type=Path, default=RUN, help=f"folder of a new run; {RUN}")
    place.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in DIR")
    parser.add_argument("--size", choices=("full", "toy"), default="full")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--compile", action="store_true", help="compile the model (CUDA)")


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def best_device() -> str:
    """Name of the device that trains when none is named."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except RunError as error:
        logging.error(error)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Run one parsed subcommand."""
    if args.command == "artwork":
        make_artwork(args.cache, args.pack)
    elif args.command == "examples":
        write_examples(MANIFEST, args.pack, args.out)
    elif args.command == "train" and args.stage == "vae":
        make_vae(recipe_of(args))
    elif args.command == "train":
        make_base(recipe_of(args), init=args.init, dropout=args.dropout)
    elif args.command == "judge":
        make_judge(recipe_of(args), args.name, args.vae, args.out)
    elif args.command == "sheet":
        draw_sheet(args.model, args.out)
    else:
        report(args)


def make_artwork(cache: Path, pack: Path) -> None:
    """Fetch, match and render everything, then write the pack and the manifest."""
    pictures, sets = match_pictures(cache)
    logging.info(summary(pictures))
    write_pack(pictures, sets, pack)
    write_manifest(pictures, sets, read_tags(cache, (p.concept for p in pictures)), MANIFEST)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Gather what a stage needs."""
    return Recipe(
        pack=args.pack,
        run=args.resume or args.run,
        minutes=args.minutes,
        batch=args.batch,
        size=size_named(args.size),
        save_minutes=args.save_minutes,
        device=torch.device(args.device),
        compiled=args.compile,
        resumes=args.resume is not None,
    )


def draw_sheet(model: Path, out: Path) -> None:
    """Draw the sheet by which the base is judged by eye."""
    torch.set_flush_denormal(True)
    pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32)
    pair_sheet(pipe, spread(train_pictures(), 48)).save(out)


def report(args: argparse.Namespace) -> None:
    """Measure a base and print what was found."""
    found = write_report(
        args.model,
        args.judge,
        read_manifest(MANIFEST),
        images=args.images,
        device=torch.device(args.device),
        sheets=args.sheets,
        file=args.json,
    )
    for name, value in found.items():
        logging.info("%s: %s", name, value)


if __name__ == "__main__":
    sys.exit(main())
