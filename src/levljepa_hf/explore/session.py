"""What the page asks for, as plain values: models, photos, uploads, clouds of one session. Knows nothing of HTTP."""

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import UndecodedImageError, decoding, open_image
from ..encoders.encoders import Encoder, LeVLJEPAEncoder
from ..encoders.features import DEFAULT_CACHE, image_digest
from ..model.processing_levljepa import to_rgb
from .patches import SIZES, PatchTokens, patch_tokens, pca_pictures, similar_patches, takes_any_size, text_on_patches
from .photos import PhotoFeatures, Photos, similarity_with
from .run import read_curves
from .search import search_scores
from .sigreg import LIMITS, SHAPES, Descent, least_gaussian_directions, make_cloud
from .space import FEATURES, agreement, default_feature, feature_of, methods, project
from .zero_shot import classifier, classify, logit_scale

UPLOAD_BYTES = 20 * 2**20
UPLOAD_PIXELS = 50_000_000
VIEW_SIDE = 1024  # of a photo in the page
MAX_TEXTS = 1000
MAX_STEPS = 20  # of a descent, at one request
_KEPT_SIDE = 1792  # of an upload in memory
_SHOWN_DIRECTIONS = 64
_EXTREMES = 8
_MAX_CAPTIONS = 4096

Body = Mapping[str, Any]


class Session:
    """A session's models and photos, and the answers of its page.

    Args:
        seen: One or two models, by `embed_photos`.
        photos: The photos.
        runs: Folders of training runs.
        prompts: Texts that the page offers first.
        cache_dir: Where projections are kept; `None` keeps them for the session.
    """

    def __init__(
        self,
        seen: Sequence[PhotoFeatures],
        photos: Photos,
        runs: Sequence[str] = (),
        prompts: Sequence[str] = (),
        cache_dir: str | Path | None = DEFAULT_CACHE,
    ) -> None:
        if not 1 <= len(seen) <= 2:
            raise ValueError(f"The explorer shows one model or two, not {len(seen)}.")
        self.seen, self.photos, self.runs, self.prompts = list(seen), photos, list(runs), list(prompts)
        self.cache_dir = cache_dir
        self.labels = _distinct([model_label(one.encoder) for one in seen])
        # All that is kept is bounded: the page may stay open for days, and anyone who reaches it may ask for more.
        self._uploads = _Recent(32)
        self._tokens = _Recent(16)
        self._descents = _Recent(16)
        self._texts = _Recent(256)
        self._answers = _Recent(64)
        self._number = 0
        self._encoding = threading.Lock()  # one pass of a model at a time

    # ------------------------------------------------------------------------------------------------------- overview

    def state(self) -> dict[str, Any]:
        """What the page needs to begin with."""
        photos = self.photos
        captions = photos.captions or [()] * len(photos)
        return {
            "models": [self._model(one, label) for one, label in zip(self.seen, self.labels, strict=True)],
            "photos": {
                "name": photos.name,
                "count": len(photos),
                "file_names": list(photos.file_names),
                "captions": [of_photo[0][:200] if of_photo else "" for of_photo in captions],
                "has_captions": photos.captions is not None,
                "labels": None if photos.labels is None else pack(np.asarray(photos.labels, dtype=np.int32)),
                "class_names": None if photos.class_names is None else [_spaced(name) for name in photos.class_names],
                "template": photos.prompts[0],
                "broken": [list(one) for one in photos.broken],
            },
            "methods": list(methods()),
            "sizes": list(SIZES),
            "shapes": list(SHAPES),
            "limits": {name: list(limits) for name, limits in LIMITS.items()},
            "upload_bytes": UPLOAD_BYTES,
            "prompts": self.prompts or self._suggested_prompts(),
            "runs": [Path(folder).name for folder in self.runs],
            "static": False,
        }

    def _model(self, seen: PhotoFeatures, label: str) -> dict[str, Any]:
        encoder = seen.encoder
        own = isinstance(encoder, LeVLJEPAEncoder)
        return {
            "label": label,
            "readouts": list(encoder.readouts),
            "best_readout": seen.best_readout,
            "features": [name for name in FEATURES if name in seen.features],
            "image_size": encoder.image_size,
            "patch_size": encoder.vision_model.config.patch_size if own else None,
            "any_size": takes_any_size(encoder),
            "places_text": own and bool(encoder.readouts),
            "logit_scale": logit_scale(encoder) if encoder.readouts else None,
        }

    def _suggested_prompts(self) -> list[str]:
        if self.photos.class_names:
            return [self.photos.prompts[0].format(_spaced(name)) for name in self.photos.class_names[:12]]
        if self.photos.captions:
            firsts = [of_photo[0] for of_photo in self.photos.captions if of_photo]
            return firsts[:: max(1, len(firsts) // 6)][:6]
        return ["a photo of a person", "a photo of an animal", "a photo of a building", "a photo of a landscape"]

    # --------------------------------------------------------------------------------------------------------- photos

    def upload(self, data: bytes) -> dict[str, Any]:
        """Takes in a photo, of which the server has seen that it has no more than `UPLOAD_BYTES`, and names it.

        Raises:
            ValueError: if it has too many pixels or is no image.
        """
        try:
            with decoding():
                image = to_rgb(open_image(data, draft_size=_KEPT_SIDE, max_pixels=UPLOAD_PIXELS))
        except UndecodedImageError as error:
            raise ValueError(f"This is no image that Pillow can read ({error}): take a JPEG, PNG or WebP.") from error
        image.thumbnail((_KEPT_SIDE, _KEPT_SIDE), Image.Resampling.BICUBIC)
        # By content: the same photo, uploaded again, keeps its tokens.
        ref = f"u{image_digest(data).hex()}"
        self._uploads.put(ref, image)
        return {"ref": ref, "width": image.width, "height": image.height}

    def image(self, ref: str) -> Image.Image:
        """The photo of a reference: `p12` of the data set, `u...` uploaded.

        Raises:
            ValueError: if there is none.
        """
        image = self._uploads.get(ref)
        if image is None and ref[:1] == "p" and ref[1:].isdecimal() and int(ref[1:]) < len(self.photos):
            image = self.photos.open(int(ref[1:]))
        if image is None:
            raise ValueError(f"There is no photo {ref[:40]!r}: choose or upload it again.")
        return image

    def view(self, ref: str) -> bytes:
        """The photo as a WebP of at most `VIEW_SIDE` pixels a side."""
        # A copy, as `thumbnail` works in place and the upload stays for other requests.
        image = self.image(ref).copy()
        image.thumbnail((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "webp", quality=85)
        return buffer.getvalue()

    # -------------------------------------------------------------------------------------------------------- patches

    def patches(self, body: Body) -> dict[str, Any]:
        """Of each model and photo: the grid of the patches and their PCA picture."""
        refs, size = self._refs(body), number(body, "size", int, 16, 2048)

        def of_model(i: int) -> dict[str, Any]:
            photos = [self._patch_tokens(i, ref, size) for ref in refs]
            pictures = [(255 * picture).round().to(torch.uint8) for picture in pca_pictures(photos)]
            return {
                "grids": [photo.grid for photo in photos],
                "sizes": [photo.size for photo in photos],
                "keeps_aspect": photos[0].keeps_aspect,
                "pca": [pack(picture) for picture in pictures],
            }

        return {"models": self._each(of_model)}

    def similar(self, body: Body) -> dict[str, Any]:
        """Of each model and photo: the cosines with the patch at a point of the first photo, or with words."""
        refs, size = self._refs(body), number(body, "size", int, 16, 2048)
        text = body.get("text")
        readout = choice(body, "readout", ("", "zeroshot", "proj", "proj_text", "avg", "predictor_pair"), "") or None
        point = None if text is not None else (number(body, "x", float, 0, 1), number(body, "y", float, 0, 1))

        def of_model(i: int) -> dict[str, Any]:
            photos = [self._patch_tokens(i, ref, size) for ref in refs]
            if point is None:
                with self._encoding:
                    maps = text_on_patches(self.seen[i].encoder, photos, _text(text), readout)
                return {"maps": [pack(one) for one in maps]}
            maps = similar_patches(photos, point)
            return {"maps": [pack(one) for one in maps], "patch": photos[0].patch_at(point)}

        return {"models": self._each(of_model)}

    def _refs(self, body: Body) -> list[str]:
        refs = body.get("photos")
        if not isinstance(refs, list) or not 1 <= len(refs) <= 2 or not all(isinstance(ref, str) for ref in refs):
            raise ValueError("photos must name one photo or two.")
        return refs

    def _patch_tokens(self, model: int, ref: str, size: int) -> PatchTokens:
        def encode() -> PatchTokens:
            image = self.image(ref)
            with self._encoding:
                return patch_tokens(self.seen[model].encoder, image, size)

        return self._tokens.get_or((model, ref, size), encode)

    # ---------------------------------------------------------------------------------------------------------- space

    def space(self, body: Body) -> dict[str, Any]:
        """The points of each model's map, the second turned to resemble the first."""
        method = choice(body, "method", methods(), "pca")
        feature = choice(body, "feature", ("", *FEATURES), "") or None

        def of_model(i: int) -> Tensor:
            # t-SNE and PCA choose their axes and signs freely: two maps can only be compared after one was turned.
            like = of_model(0) if i else None
            features = feature_of(self.seen[i], feature)
            return self._answers.get_or(
                ("space", i, method, feature), lambda: project(features, method, like, cache_dir=self.cache_dir)
            )

        return {
            "models": self._each(
                lambda i: {"points": pack(of_model(i)), "feature": feature or default_feature(self.seen[i])}
            )
        }

    def agreement(self, body: Body) -> dict[str, Any]:
        """How far the two models agree on each photo."""
        if len(self.seen) < 2:
            raise ValueError("Agreement is that of two models, and there is one: levljepa explore MODEL MODEL_B.")
        feature = choice(body, "feature", ("", *FEATURES), "") or None
        pair = [feature_of(one, feature) for one in self.seen]
        values = self._answers.get_or(("agreement", feature), lambda: agreement(*pair))
        return {"values": pack(values), "chance": min(20, len(values) - 1) / max(1, len(values) - 1)}

    def nearest_prompts(self, body: Body) -> dict[str, Any]:
        """Of each model: the most similar prompt of each photo."""
        self._check_readout(body)
        prompts = texts_of(body, "prompts")
        if not prompts:
            raise ValueError("There are no prompts: type some, one a line.")

        def of_model(i: int) -> dict[str, Any]:
            return {"nearest": pack(self._similarity(i, prompts, body).argmax(1).to(torch.int32))}

        return {"prompts": prompts, "models": self._each(of_model)}

    def _similarity(self, model: int, texts: list[str], body: Body) -> Tensor:
        """[N, M]; the texts of the last requests stay embedded."""
        seen = self.seen[model]

        def embed() -> Any:
            with self._encoding:
                return seen.encoder.embed_texts(texts, show_progress=False)

        embedded = self._texts.get_or((model, tuple(texts)), embed)
        return similarity_with(seen, embedded, self._readout(model, body))

    def _readout(self, model: int, body: Body) -> str | None:
        """The one asked for, or the best of a model that does not have it while another does."""
        wanted = body.get("readout") or None
        return wanted if wanted in self.seen[model].encoder.readouts else None

    def _check_readout(self, body: Body) -> None:
        wanted, offered = body.get("readout"), [name for one in self.seen for name in one.encoder.readouts]
        if wanted and wanted not in offered:
            raise ValueError(
                f"readout={str(wanted)[:40]!r} is none of the models': {', '.join(dict.fromkeys(offered))}."
            )

    # --------------------------------------------------------------------------------------------------------- search

    def search(self, body: Body) -> dict[str, Any]:
        """Of each model: the nearest photos with their scores, and the scores of all."""
        self._check_readout(body)
        k = number(body, "k", int, 1, 200, 24)
        text, ref = body.get("text"), body.get("photo")
        feature = choice(body, "feature", ("", *FEATURES), "") or None
        if (text is None) == (ref is None):
            raise ValueError("Search for a text or for a photo.")

        def of_model(i: int) -> dict[str, Any]:
            if text is not None:
                scores = self._similarity(i, [_text(text)], body)[:, 0]
            elif str(ref)[:1] == "p":
                # For its error alone, where there is no such photo.
                self.image(str(ref))
                scores = search_scores(self.seen[i], int(str(ref)[1:]), feature=feature)
            else:
                image = self.image(str(ref))
                with self._encoding:
                    scores = search_scores(self.seen[i], image, feature=feature, transform=self.photos.transform)
            best = scores.topk(min(k, len(scores)))
            readout = None if text is None else self._readout(i, body) or self.seen[i].best_readout
            return {
                "indices": best.indices.tolist(),
                "scores": [round(score, 4) for score in best.values.tolist()],
                "all": pack(scores),
                "by": readout or feature or default_feature(self.seen[i]),
            }

        return {"models": self._each(of_model)}

    # ------------------------------------------------------------------------------------------------------ zero-shot

    def zero_shot(self, body: Body) -> dict[str, Any]:
        """Of each model: the probabilities of a photo, and accuracy and confusion where photos have labels."""
        self._check_readout(body)
        names, template = texts_of(body, "class_names"), _text(body.get("template", "a photo of a {}."))
        ref = body.get("photo")

        def of_model(i: int) -> dict[str, Any]:
            seen = self.seen[i]
            readout = self._readout(i, body)
            with self._encoding:
                result = classify(seen, self.photos, names, template, readout)
            answer: dict[str, Any] = {
                "readout": readout or seen.best_readout,
                "logit_scale": logit_scale(seen.encoder),
                "class_names": list(result.class_names),
                "accuracy": result.accuracy,
                "predicted": pack(result.probabilities.argmax(1).to(torch.int32)),
            }
            if result.confusion is not None:
                answer["counted"] = int(result.confusion.sum())
                answer["confusion"] = pack(result.confusion.to(torch.int32))
            if ref is not None:
                answer["probabilities"] = self._probabilities(i, str(ref), names, template, readout, result)
            return answer

        return {"models": self._each(of_model)}

    def _probabilities(
        self, model: int, ref: str, names: list[str], template: str, readout: str | None, result: Any
    ) -> list[float]:
        image = self.image(ref)
        if ref[0] == "p":
            values = result.probabilities[int(ref[1:])]
        else:
            from .zero_shot import classify_image

            with self._encoding:
                encoder = self.seen[model].encoder
                values = classify_image(encoder, image, names, template, readout, self.photos.transform)
        return [round(value, 5) for value in values.tolist()]

    # --------------------------------------------------------------------------------------------------------- SIGReg

    def start_descent(self, body: Body) -> dict[str, Any]:
        """A new cloud."""
        cloud = make_cloud(
            choice(body, "shape", SHAPES, SHAPES[0]),
            number(body, "num_samples", int, *LIMITS["num_samples"], 1000),
            number(body, "dim", int, *LIMITS["dim"], 2),
            number(body, "seed", int, 0, 2**31, 0),
        )
        descent = Descent(cloud, **_descent_options(body))
        self._number += 1
        name = str(self._number)
        self._descents.put(name, (descent, threading.Lock()))
        return {"id": name, **_shown(descent, [descent.shown()], descent.values)}

    def run_descent(self, body: Body) -> dict[str, Any]:
        """Some steps of a cloud, under the settings of now."""
        found = self._descents.get(str(body.get("id")))
        if found is None:
            raise ValueError("This cloud is no longer kept: begin anew.")
        descent, lock = found
        steps = number(body, "steps", int, 1, MAX_STEPS, 1)
        with lock:
            descent.configure(**_descent_options(body))
            frames = descent.run(steps)
            return _shown(descent, frames, descent.values[-steps:])

    def directions(self, body: Body) -> dict[str, Any]:
        """The directions in which a model's embeddings are least Gaussian, with the photos at both ends of each."""
        what = choice(body, "what", ("image_embeds", "predictions", "cls", "text_embeds"), "image_embeds")
        model = number(body, "model", int, 0, len(self.seen) - 1, 0)

        def find() -> dict[str, Any]:
            owners, z = self._embeddings(model, what)
            found = least_gaussian_directions(z)
            ends = []
            for u in found.projections.T:
                order = u.argsort()
                rows = [order[:_EXTREMES], order[-_EXTREMES:].flip(0)]
                ends.append([owners[found.rows[some]].tolist() for some in rows])
            return {
                "statistics": found.statistics.tolist(),
                "projections": [pack(u) for u in found.projections.T],
                "deviations": found.projections.std(0).tolist(),
                "random": pack(found.random),
                "floor": found.floor,
                "count": len(found.rows),
                "ends": ends,
            }

        return self._answers.get_or(("directions", model, what), find)

    def _embeddings(self, model: int, what: str) -> tuple[Tensor, Tensor]:
        """The photo of each embedding, and the embeddings."""
        if what != "text_embeds":
            z = feature_of(self.seen[model], what)
            return torch.arange(len(z)), z
        captions = self.photos.captions
        owners = [i for i, of_photo in enumerate(captions or ()) if of_photo][:_MAX_CAPTIONS]
        if not owners:
            raise ValueError(f"{self.photos.name} has no captions, so there are no embeddings of texts.")
        with self._encoding:
            texts = self.seen[model].encoder.embed_texts([captions[i][0] for i in owners], show_progress=False)
        return torch.tensor(owners), texts.embeds

    # ------------------------------------------------------------------------------------------------------------ run

    def run(self) -> dict[str, Any]:
        """The curves of the runs, as they are on disk now."""
        return read_curves(self.runs)

    # -------------------------------------------------------------------------------------------------------- helpers

    def _each(self, of_model: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        """Each model's answer, or why it has none. If none has one, the first one's error is raised."""
        answers: list[dict[str, Any]] = []
        errors: list[ValueError] = []
        for i in range(len(self.seen)):
            try:
                answers.append(of_model(i))
            except ValueError as error:
                errors.append(error)
                answers.append({"error": str(error)})
        if len(errors) == len(self.seen):
            raise errors[0]
        return answers


class _Recent:
    """The values used last, by key. Safe among threads; a value is made once, whoever asks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)

    def get_or(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            value = self.get(key)
            if value is None:
                value = make()
                self.put(key, value)
        with self._lock:
            self._making.pop(key, None)
        return value


def model_label(encoder: Encoder) -> str:
    """A short name: of a folder its last part, else as it was given."""
    return Path(encoder.name).name if Path(encoder.name).is_dir() else encoder.name


def _distinct(names: Sequence[str]) -> list[str]:
    return [f"{name} ({'AB'[i]})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _spaced(name: str) -> str:
    return name.replace("_", " ").strip()


def _descent_options(body: Body) -> dict[str, Any]:
    return {
        "num_directions": number(body, "num_directions", int, *LIMITS["num_directions"], 64),
        "num_knots": number(body, "num_knots", int, *LIMITS["num_knots"], 17),
        "t_max": number(body, "t_max", float, 0.5, 10, 3.0),
        "step_size": number(body, "step_size", float, 1e-4, 100, 0.5),
    }


def _shown(descent: Descent, frames: Sequence[Tensor], values: Sequence[float]) -> dict[str, Any]:
    arrows = descent.directions[:, :_SHOWN_DIRECTIONS].T @ descent.plane
    return {
        "frames": [pack(frame) for frame in frames],
        "values": list(values),
        "step": len(descent.values) - 1,
        "directions": pack(arrows),
        "floor": descent.floor,
    }


# ---------------------------------------------------------------------------------------------------- what is said


def pack(array: Tensor | np.ndarray) -> dict[str, Any]:
    """Numbers as base64 of float32, int32 or uint8, with their kind and shape."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        array = array.astype("<f4")
    kind = {"f": "f32", "i": "i32", "u": "u8"}[array.dtype.kind]
    return {"kind": kind, "shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def number(body: Body, name: str, kind: type, low: float, high: float, default: float | None = None) -> Any:
    """A number of a request.

    Raises:
        ValueError: if it is none, or out of range.
    """
    value = body.get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (kind is int and value != int(value)):
        kinds = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={str(value)[:40]!r} must be {kinds} from {low} to {high}.")
    return kind(value)


def choice(body: Body, name: str, choices: Sequence[str], default: str) -> str:
    """One of some words.

    Raises:
        ValueError: if it is another.
    """
    value = body.get(name, default)
    if value not in choices:
        raise ValueError(f"{name}={str(value)[:40]!r} is none of {', '.join(filter(None, choices))}.")
    return value


def texts_of(body: Body, name: str) -> list[str]:
    """A list of texts, without empty ones.

    Raises:
        ValueError: if it is none, or too long.
    """
    values = body.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be a list of texts.")
    values = [_text(value.strip()) for value in values if value.strip()]
    if len(values) > MAX_TEXTS:
        raise ValueError(f"{name} has {len(values)} texts, more than {MAX_TEXTS}.")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 2000:
        raise ValueError("Type some words, 2000 characters at most.")
    return value


__all__ = ["Session", "UPLOAD_BYTES", "classifier", "model_label", "pack"]
