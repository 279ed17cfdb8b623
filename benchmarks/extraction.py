"""Features of images and texts: the package's extraction against the bare loop, side by side in one process.

Data in memory means decoded photos: `--num_images` uint8 RGB images (PIL) as large as the encoder's input, all
different. The bare loop is given them prepared, normalised and stacked in float32 on the encoder's device, and does
nothing but `timm_model.forward_features(batch)`. Ours is `pooled_features` of the photos, without a cache: it digests,
prepares, stacks and encodes each, pools the patches, and gives the features on the CPU. So the bare loop is a bound,
and the share of its images per second says what all the rest costs. "read again" is the same when a cache has all.

Of texts, the plain loop embeds 1000 captions of 3 to 35 words, 200 of them distinct, in their order, padded
to the longest of the batch. Ours (`embed_texts`) embeds equal ones once and those of like length together.

    python benchmarks/extraction.py --threads 1 --clock cpu   # ViT-B, two minutes
    python benchmarks/extraction.py --architecture vit_tiny_patch16_224 --num_images 64 --threads 1 --clock cpu
    python benchmarks/extraction.py --num_images 4096 --batch_size 256 --num_workers 12 --dtype bfloat16   # on a GPU
"""

import argparse
import random
import statistics
import tempfile
import time

import measure
import numpy as np
import timm
import torch
from PIL import Image

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor
from levljepa_hf.encoders.embeddings import Embeddings, embed_in_batches, embed_texts
from levljepa_hf.encoders.encoders import TimmEncoder
from levljepa_hf.encoders.features import pooled_features

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WORDS = "a the dog cat man woman child runs sits jumps on in beside red blue small large grass water ball".split()


def make_photos(number: int, side: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(number)]


def make_captions(number: int, copies: int) -> list[str]:
    rng = random.Random(0)
    captions = [" ".join(rng.choices(WORDS, k=rng.randint(3, 35))) for _ in range(number // copies)] * copies
    rng.shuffle(captions)
    return captions


def measure_images(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    model = timm.create_model(args.architecture, num_classes=0).to(device, getattr(torch, args.dtype))
    encoder = TimmEncoder(args.architecture, model)
    photos = make_photos(args.num_images, encoder.image_size)
    prepared = encoder.image_processor("default")(photos, return_tensors="pt")["pixel_values"]
    batches = prepared.to(device, encoder.dtype).split(args.batch_size)

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            model.forward_features(batch)

    with tempfile.TemporaryDirectory() as cache:
        options = {"transform": "default", "batch_size": args.batch_size, "show_progress": False}
        forms = {
            "bare timm loop": bare,
            "ours": lambda: pooled_features(encoder, photos, num_workers=args.num_workers, **options),
            "ours, read again": lambda: pooled_features(encoder, photos, cache_dir=cache, **options),
        }
        seconds = measure.interleaved(forms, args.repeats, device, warmup=1, clock=CLOCKS[args.clock])
        result: dict[str, object] = {}
        for name, form in forms.items():
            result[f"{name}: images/s"] = round(args.num_images / statistics.median(seconds[name]), 2)
            result[f"{name}: peak MiB"] = round(measure.peak_memory(form, device) / 2**20, 1)
        share = measure.median_ratio(seconds["bare timm loop"], seconds["ours"])
    return result | {"ours: share of the bare loop's images/s": round(share, 4)}


def measure_texts(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset(args.text_preset)).to(device).eval()
    processor = LeVLJEPAProcessor.from_image_size(224)
    captions = make_captions(args.num_captions, copies=5)

    def encode(batch: list[str]) -> Embeddings:
        z = model.get_text_features(**processor(text=batch, return_tensors="pt").to(device)).pooler_output
        return Embeddings(z, model.text_predictor(z))

    forms = {
        "plain": lambda: embed_in_batches(encode, captions, 64, None),
        "ours": lambda: embed_texts(model, processor, captions, 64, show_progress=False),
    }
    seconds = measure.interleaved(forms, min(args.repeats, 3), device, warmup=1, clock=CLOCKS[args.clock])
    return {
        "texts, plain: captions/s": round(args.num_captions / statistics.median(seconds["plain"]), 1),
        "texts, ours: captions/s": round(args.num_captions / statistics.median(seconds["ours"]), 1),
        "texts, ours: times faster": round(measure.median_ratio(seconds["plain"], seconds["ours"]), 2),
    }


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="vit_base_patch16_224", help="any timm model (default: ViT-B/16)")
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that prepare images for ours")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32", help="of timm's weights")
    parser.add_argument("--text_preset", default="debug", help="size of the text tower (default: debug)")
    parser.add_argument("--num_captions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of torch's")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {"benchmark": "extraction", **vars(args), **measure.environment(device)}
    result |= measure_images(args, device) | measure_texts(args, device)
    measure.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
