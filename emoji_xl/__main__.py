"""Command line: python -m emoji_xl artwork | examples | train | sheet."""

import argparse
import logging
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from emoji_xl.artwork import match_pictures, summary, write_manifest, write_pack
from emoji_xl.examples import write_examples
from emoji_xl.recipe import MANIFEST, Recipe, make_base, make_vae, size_named, train_pictures
from emoji_xl.sheet import pair_sheet, spread

RUN = Path("runs/emoji-xl")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="python -m emoji_xl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    artwork = commands.add_parser("artwork", help="fetch, match and render the artwork")
    artwork.add_argument("--cache", type=Path, default=Path("runs/npm"))
    artwork.add_argument("--pack", type=Path, default=RUN / "artwork.zip")

    examples = commands.add_parser("examples", help="write the example folders to train on")
    examples.add_argument("--pack", type=Path, default=RUN / "artwork.zip")
    examples.add_argument("--out", type=Path, default=Path("examples"))

    train = commands.add_parser("train", help="train one stage of the base")
    train.add_argument("--stage", choices=("vae", "unet"), required=True)
    train.add_argument("--minutes", type=float, required=True, help="wall-clock time to train for")
    train.add_argument("--save-minutes", type=float, default=2.0, help="time between saves")
    train.add_argument("--batch", type=int, default=512)
    train.add_argument("--pack", type=Path, default=RUN / "artwork.zip")
    train.add_argument("--run", type=Path, default=RUN)
    train.add_argument("--size", choices=("full", "toy"), default="full")
    train.add_argument("--init", type=Path, help="pipeline folder to start the unet stage from")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train.add_argument("--compile", action="store_true", help="compile the model (CUDA)")

    sheet = commands.add_parser("sheet", help="draw 48 known pairs with a trained base")
    sheet.add_argument("model", type=Path)
    sheet.add_argument("out", type=Path)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one subcommand."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    args = build_parser().parse_args(argv)
    if args.command == "artwork":
        make_artwork(args.cache, args.pack)
    elif args.command == "examples":
        write_examples(MANIFEST, args.pack, args.out)
    elif args.command == "train":
        train(args)
    else:
        draw_sheet(args.model, args.out)


def make_artwork(cache: Path, pack: Path) -> None:
    """Fetch, match and render everything, then write the pack and the manifest."""
    pictures, sets = match_pictures(cache)
    logging.info(summary(pictures))
    write_pack(pictures, sets, pack)
    write_manifest(pictures, sets, MANIFEST)


def train(args: argparse.Namespace) -> None:
    """Train one stage."""
    recipe = Recipe(
        pack=args.pack,
        run=args.run,
        minutes=args.minutes,
        batch=args.batch,
        size=size_named(args.size),
        save_minutes=args.save_minutes,
        device=torch.device(args.device),
        compiled=args.compile,
    )
    if args.stage == "vae":
        make_vae(recipe)
    else:
        make_base(recipe, init=args.init)


def draw_sheet(model: Path, out: Path) -> None:
    """Draw the sheet by which the base is judged."""
    torch.set_flush_denormal(True)
    pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32)
    pair_sheet(pipe, spread(train_pictures(), 48)).save(out)


if __name__ == "__main__":
    main()
