"""One method on each family, from a shrunken checkpoint to scores; `tox -e presets` tries every pair."""

from pathlib import Path

import pytest

from tests.studies.families import METHODS, tried
from tests.studies.presets import FAMILIES

CHOSEN = {"sd3": "dmdr", "sdxl": "dmd2", "flux2": "rtdmd", "z_image": "dpo", "sit": "dp_dmd"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_trained_exported_opened_drawn_and_scored(family: str, tmp_path: Path) -> None:
    (tmp_path / "families").mkdir()
    told, good = tried(family, CHOSEN[family], tmp_path / "families", tmp_path)
    assert good, told
    assert set(CHOSEN) == set(FAMILIES) and set(CHOSEN.values()) <= METHODS.keys()
