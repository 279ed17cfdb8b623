"""Fine-tuning for classification and semantic segmentation on transformers' `Trainer`, from any LeVLJEPA checkpoint.

    train, test = (load_split("scenes", "linear-probe", split, max_samples=500) for split in ("train", "test"))
    model, processor = load_model("classification", "runs/demo", train.class_names)
    args = ClassificationArguments("runs/classifier", mode="lora", num_train_epochs=3)
    trainer = build_trainer(model, processor, args, train, test)
    trainer.train()
    trainer.evaluate()  # {"eval_accuracy": ..., "eval_top5_accuracy": ..., ...}
    trainer.merge_lora().save_model()  # a plain model, which AutoModelForImageClassification loads

`levljepa finetune classification` and `levljepa finetune segmentation` do the same from the command line.
"""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "data": (
            "ClassificationDataset FineTuningCollator SegmentationDataset classification_transform "
            "count_classes segmentation_transform "
        ),
        "modes": "add_lora freeze_tower layer_decay_groups",
        "trainer": (
            "CLASS_BALANCES TASKS ClassificationArguments ClassificationMetrics FineTuningArguments "
            "FineTuningTrainer SegmentationArguments SegmentationMetrics build_trainer check_classes "
            "check_train_classes draw_confusion draw_segmentation load_model predicted_maps "
        ),
    },
)
