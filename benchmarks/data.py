"""Reading photos for training: ours, a plain PIL + torchvision loader and decoding alone, side by side in one process.

The plain form is the official code's way: PIL decodes the whole photo, torchvision's transforms work on PIL images,
every image is made float and normalised by itself. Both forms draw a caption and tokenize it with the same tokenizer;
decoding alone does neither. Photos are made on the spot (JPEG, quality 90, with the spectrum of photos), unless a
folder of them is given.

    python benchmarks/data.py --images 32 --repeats 2 --workers 0    # some seconds
    python benchmarks/data.py --clock cpu --views                    # on a machine that is busy with other things
    python benchmarks/data.py --photos path/to/photos --sizes 500 --repeats 7
"""

import argparse
import contextlib
import ctypes
import gc
import io
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from levljepa_hf import LeVLJEPAProcessor
from levljepa_hf.data.collator import LeVLJEPADataCollator, NumberedDataset, multi_view_transform, training_transform

QUALITY = 90
WORDS = "a dog runs on the beach with red ball two people stand near water and look at an old wooden boat".split()


# Photos


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


def synthetic_photo(seed: int, side: int) -> bytes:
    """Noise of all scales, each two thirds as strong as the one twice as coarse: some 1.4 bits a pixel."""
    generator = np.random.default_rng(seed)
    width, height = (side, side * 3 // 4) if seed % 2 else (side * 3 // 4, side)
    pixels = np.zeros((height, width, 3), np.float32)
    across = 2
    while across <= width:
        shape = (max(2, across * height // width), across)
        for channel in range(3):
            noise = Image.fromarray(generator.standard_normal(shape).astype(np.float32))
            pixels[..., channel] += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / across**0.6
        across *= 2
    pixels = 120 + 50 * (pixels - pixels.mean()) / pixels.std()
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def photos_of(folder: Path, side: int, number: int) -> list[bytes]:
    """The largest of the folder; those whose long side is not `side` are resized to it."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        raise ValueError(f"There is no .jpg file in {folder}, which --photos names.")
    photos = []
    for path in sorted(files, key=lambda path: -max(Image.open(path).size))[:number]:
        image = Image.open(path).convert("RGB")
        factor = side / max(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        photos.append(path.read_bytes() if factor == 1 else encode(image.resize(size, Image.Resampling.BICUBIC)))
    return photos


def caption(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=8 + seed % 9))


# The plain forms


class Plain(Dataset):
    """Samples through torchvision's transforms of PIL images; `transform` None decodes alone."""

    def __init__(self, samples: Sequence[dict[str, Any]], transform: Callable[[Image.Image], Any] | None) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        image = Image.open(io.BytesIO(sample["image"])).convert("RGB")
        if self.transform is None:
            return image.size
        return self.transform(image), random.choice(sample["captions"])


def plain_view(processor: LeVLJEPAProcessor, size: int, scale: tuple[float, float], *more: Any) -> transforms.Compose:
    images = processor.image_processor
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
            transforms.RandomHorizontalFlip(0.5),
            *more,
            transforms.ToTensor(),
            transforms.Normalize(images.image_mean, images.image_std),
        ]
    )


def plain_transform(processor: LeVLJEPAProcessor) -> Callable[[Image.Image], Tensor]:
    jitter = transforms.RandomApply([transforms.ColorJitter(0.2, 0.2, 0.2, 0.02)], 0.3)
    return plain_view(processor, 224, (0.8, 1.0), jitter, transforms.RandomGrayscale(0.05))


class PlainViews:
    """The views of LeVLJEPA+: two of 224 pixels, four of 96."""

    def __init__(self, processor: LeVLJEPAProcessor) -> None:
        colors = [
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
        ]
        blur = transforms.GaussianBlur(23, (0.1, 2.0))
        solarize = transforms.RandomSolarize(128, 0.2)
        rare, half = (transforms.RandomApply([blur], p) for p in (0.1, 0.5))
        self.global_views = [
            plain_view(processor, 224, (0.4, 1.0), *colors, blur),
            plain_view(processor, 224, (0.4, 1.0), *colors, rare, solarize),
        ]
        self.local_views = [plain_view(processor, 96, (0.05, 0.4), *colors, half)] * 4

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return tuple(torch.stack([view(image) for view in views]) for views in (self.global_views, self.local_views))


class PlainCollator:
    def __init__(self, processor: LeVLJEPAProcessor) -> None:
        self.processor = processor

    def __call__(self, pairs: list[tuple[Any, str]]) -> dict[str, Any]:
        images, captions = zip(*pairs, strict=True)
        tokens = self.processor(text=list(captions), return_tensors="pt")
        return {"images": torch.utils.data.default_collate(list(images)), **tokens}


# Measuring


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def loader(dataset: Dataset, collate: Callable[[list], Any], batch_size: int, workers: int) -> measure.Step:
    """Reads all batches. Ours normalises where they arrive, as the Trainer does; here that is this process."""
    arrived = getattr(collate, "normalized", lambda batch: batch)
    loader = DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=one_thread,
    )

    def read() -> None:
        for batch in loader:
            arrived(batch)

    return read


def processor_time() -> float:
    """Seconds of the processor that this process and its workers have used."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def peak_resident(form: measure.Step) -> int:
    """Bytes of resident memory that the form adds at most, looked at every millisecond."""
    process, done = psutil.Process(), threading.Event()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # what earlier forms have left
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    form()
    done.set()
    thread.join()
    return peak[0] - before


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000], help="long sides of the photos in pixels")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files (default: made on the spot)")
    parser.add_argument("--number", type=int, default=16, help="different photos (default: 16)")
    parser.add_argument("--images", type=int, default=128, help="photos read in one turn (default: 128)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--views", action="store_true", help="the six views of LeVLJEPA+, not one")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of these processes alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    torch.set_num_threads(1)
    processor = LeVLJEPAProcessor.from_image_size(224)
    device = torch.device("cpu")
    result = {"benchmark": "data", **vars(args), "photos": str(args.photos or "synthetic")}
    result |= measure.environment(device)
    for side in args.sizes:
        photos = photos_of(args.photos, side, args.number) if args.photos else None
        photos = photos or [synthetic_photo(seed, side) for seed in range(args.number)]
        result[f"{side} px: kB a photo"] = round(statistics.mean(map(len, photos)) / 1000, 1)
        samples = [
            {"image": photos[i % len(photos)], "captions": [caption(5 * i + k) for k in range(5)]}
            for i in range(args.images)
        ]
        for workers in args.workers:
            transform = multi_view_transform() if args.views else training_transform()
            plain = PlainViews(processor) if args.views else plain_transform(processor)
            sets = {
                "plain": (Plain(samples, plain), PlainCollator(processor)),
                "ours": (
                    NumberedDataset(samples),
                    LeVLJEPADataCollator(processor, transform=transform, normalize=False),
                ),
                "decoding": (Plain(samples, None), list),
            }
            forms = {name: loader(*pair, args.batch_size, workers) for name, pair in sets.items()}
            clock = processor_time if args.clock == "cpu" else time.perf_counter
            seconds = measure.interleaved(forms, args.repeats, device, warmup=1, clock=clock)
            cores = 1 if args.clock == "cpu" else max(1, workers)
            for name, times in seconds.items():
                key = f"{side} px, {workers} workers, {name}"
                result[f"{key}: images/s a core"] = round(args.images / statistics.median(times) / cores, 1)
                result[f"{key}: times faster"] = round(measure.median_ratio(seconds["plain"], times), 2)
                if workers == 0:
                    result[f"{key}: peak MiB"] = round(peak_resident(forms[name]) / 2**20, 1)
    measure.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
