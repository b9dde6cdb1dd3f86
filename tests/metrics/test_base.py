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


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_metric", "--plugin no_such_metric: no such module"),
        ("no_such.metric", "--plugin no_such.metric: no such module"),
        ("their.py", "--plugin 'their.py': name a module"),
        ("./foo/bar", "name a module"),
        ("", "--plugin '': name a module"),
        ("lacking_metric", "--plugin lacking_metric: cannot be imported: No module named 'not_installed_anywhere'"),
        ("unread_metric", r"--plugin unread_metric: .*unread_metric\.py, line 2: "),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lacking_metric.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "unread_metric.py").write_text("a = 1\nb = = 2\n")
    with pytest.raises(UserError, match=told):
        import_plugins([name])


def test_a_fault_within_a_plugin_shows_its_own_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty_metric.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_plugins(["faulty_metric"])


def test_a_per_image_metric_contributes_its_scores_in_float32() -> None:
    summary = PerImage().summarise({"score": torch.tensor([0.25, 0.5], dtype=torch.float64)}, [])
    assert summary.value is None
    assert summary.per_image_N is not None
    assert summary.per_image_N.dtype == np.float32
    assert summary.per_image_N.tolist() == [0.25, 0.5]
