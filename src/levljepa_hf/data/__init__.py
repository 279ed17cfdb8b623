"""Data: from wherever images, captions and labels are, to a batch."""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "augmentation": "multi_view_transform objective_transform training_transform",
        "catalogue": "CatalogueEntry DATASETS PROMPTS",
        "collator": "LeVLJEPADataCollator NumberedDataset SampleCounter image_size",
        "images": "open_image",
        "labelled": "dataset_id read_split",
        "loading": (
            "column_addresses find_column find_columns find_image_column guess_column list_columns "
            "load_pretraining_dataset load_source look_up root_column "
        ),
        "mixtures": "Mixture MixtureSource load_mixture",
        "splits": "EvaluationSplit Question",
        "streams": "EndlessStream ResumableStream",
    },
)
