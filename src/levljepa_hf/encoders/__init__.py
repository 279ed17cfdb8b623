"""Encoders: any frozen tower, and the features of many images."""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "embeddings": "Embeddings embed_images embed_texts",
        "encoders": "Encoder LeVLJEPAEncoder TRANSFORMS TimmEncoder TransformersEncoder load_encoder",
        "features": "DEFAULT_CACHE Features PatchFeatures patch_features pooled_features",
    },
)
