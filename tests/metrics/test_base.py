from pathlib import Path

import numpy as np
import pytest
import torch

from metrics import base
from metrics.base import PerImage, UserError, available, import_plugins, make, register


def test_every_registered_metric_keeps_the_contract() -> None:
    for identity, cls in available().items():
        metric = make(identity)
        assert isinstance(metric, cls)
        assert metric.card.id == identity
        assert metric.card.range[0] < metric.card.range[1]
        assert all(":" in key for key in metric.features)
        assert metric.card.micro == identity.startswith(("micro_", "shapes_"))
        assert metric.card.title.startswith("micro") == metric.card.micro


def test_a_taken_id_is_an_error(toy_metrics: dict[str, type]) -> None:
    with pytest.raises(UserError, match="'toy_clip' is taken twice"):
        register(toy_metrics["toy_clip"])


def test_an_unknown_id_names_the_nearest_one(toy_metrics: dict[str, type]) -> None:
    with pytest.raises(UserError, match="did you mean 'toy_diversity'"):
        make("toy_divrsity")


def test_a_plugin_registers_by_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_METRICS", base.Registry("metric"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_metric.py").write_text(
        "from types import SimpleNamespace\n"
        "from metrics.base import register\n"
        "@register\n"
        "class Theirs:\n"
        "    card = SimpleNamespace(id='theirs')\n"
    )
    import_plugins(["their_metric"])
    assert set(base._METRICS) == {"theirs"}


def test_a_missing_plugin_is_the_users_mistake_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_metric.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(UserError, match="--plugin no_such_metric"):
        import_plugins(["no_such_metric"])
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        import_plugins(["broken_metric"])


def test_a_per_image_metric_contributes_its_scores_in_float32() -> None:
    summary = PerImage().summarise({"score": torch.tensor([0.25, 0.5], dtype=torch.float64)}, [])
    assert summary.value is None
    assert summary.per_image_N is not None
    assert summary.per_image_N.dtype == np.float32
    assert summary.per_image_N.tolist() == [0.25, 0.5]
