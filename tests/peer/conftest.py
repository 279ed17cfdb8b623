"""Runs transformers' own common tests on the classes of this package, offline: `make peer-tests`.

`fetch.py` gets the tests, `stand_ins.py` what they miss. The normal test run leaves this folder out.
PipelineTesterMixin does not run: its tests are not in the source distribution, and its models are on the Hub.
"""

import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

import levljepa_hf  # noqa: E402, F401
import stand_ins  # noqa: E402

TESTS = stand_ins.install()

# The common tests look up by class name which labels a class takes, and which classes have no loss.
modeling_auto.MODEL_MAPPING_NAMES["levljepa_vision_model"] = "LeVLJEPAVisionModel"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["levljepa_vision_model"] = "LeVLJEPABackbone"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["levljepa"] = "LeVLJEPAForImageClassification"
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["levljepa"] = "LeVLJEPAForSemanticSegmentation"


def pytest_configure(config: pytest.Config) -> None:
    sources = "".join(path.read_text("utf-8") for path in TESTS.glob("*.py"))
    for marker in sorted(set(re.findall(r"mark\.(\w+)", sources))):
        config.addinivalue_line("markers", f"{marker}: a marker of transformers' tests")
