"""Scenes: captioned pictures composed from OpenMoji's drawings, on which everything runs offline."""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "dataset": (
            "BACKGROUNDS_PER_CLASS BACKGROUND_CORRELATION BackgroundScenes SPLITS SceneDataset "
            "class_backgrounds load_scenes mixed_scene save_scenes "
        ),
        "painting": "render_scene",
        "scene": (
            "BACKGROUND_NAMES CAPTION_KINDS CLASS_NAMES POSITION_NAMES PROMPT_TEMPLATE Scene "
            "SceneObject SceneQuestion class_prompts describe_scene sample_scene scene_questions "
            "with_article "
        ),
    },
)
