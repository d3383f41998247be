"""Train the tiny model, part by part, each into DIR; a part goes on where it was stopped.

python -m training.train vae DIR --samples 35200
python -m training.train steady DIR --samples 10000
python -m training.train pool DIR --samples 20000
python -m training.train unet DIR --samples 200000
python -m training.train on DIR --samples 160000 --earlier OTHER/net.pt
python -m training.train outline DIR --samples 40000 (and stripes, night, diamond, emblem)
python -m training.train control DIR --samples 80000 --earlier civman/demo/models/tiny-shapes.safetensors
python -m training.train flow DIR --samples 400000 --earlier civman/demo/models/tiny-shapes.safetensors
"""

import argparse
from pathlib import Path

import torch

from training import adapters, autoencoder, control, diffusion, flow

FLOW_STYLES = [f"flow-{name}" for name in adapters.STYLES]

PARTS = ("vae", "steady", "pool", "unet", "on", *adapters.STYLES, *adapters.WORDS, "control", "flow", *FLOW_STYLES)


def main() -> None:
    """Read the command line and train the named part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument(
        "--earlier", type=Path, help="what to start from: a checkpoint of ours, or an earlier file of this part"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    # the UNet's two processes have one thread each
    torch.set_num_threads(1 if args.part == "unet" else args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part == "vae":
        autoencoder.train(args.folder, samples=args.samples)
    elif args.part == "steady":
        autoencoder.steady(args.folder, samples=args.samples)
    elif args.part == "pool":
        diffusion.prepare(args.folder, count=args.samples)
    elif args.part == "unet":
        diffusion.train(args.folder, samples=args.samples, earlier=args.earlier)
    elif args.part == "on":
        diffusion.train_on(args.folder, samples=args.samples, start=args.earlier)
    elif args.part == "control":
        control.train(args.folder, samples=args.samples, checkpoint=args.earlier)
    elif args.part == "flow":
        flow.train(args.folder, samples=args.samples, checkpoint=args.earlier)
    elif args.part in FLOW_STYLES:
        flow.train_style(args.folder, args.part.removeprefix("flow-"), samples=args.samples, checkpoint=args.earlier)
    elif args.part in adapters.WORDS:
        adapters.train_word(args.folder, args.part, samples=args.samples, start=args.earlier)
    else:
        adapters.train_style(args.folder, args.part, samples=args.samples, start=args.earlier)


if __name__ == "__main__":
    main()
