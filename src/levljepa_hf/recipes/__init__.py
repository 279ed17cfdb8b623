"""Recipes: YAML files of a command's options, those that come with the package and those that a run leaves."""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "arguments": (
            "DIVERGED_NAME RECIPE_NAME RecipeLoader add_overrides as_config as_overrides changed_options "
            "config_from_preset parse_arguments read_recipe run_script save_recipe"
        ),
        "shelf": "RECIPES recipe_names recipe_path recipe_summary",
    },
)
