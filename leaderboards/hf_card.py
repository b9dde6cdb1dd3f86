"""Evaluation results for a model's card on the Hugging Face hub: the `model-index` block of its README.

One entry per metric of a ranked result: task text-to-image, the prompt set as data set, the value, and beside it what
makes the number comparable: variant, version, interval, protocol, digest of the evidence, and the verdict on the
model's rewards. Written and read back by huggingface_hub itself; other metadata and the text of a README stay.

Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaderboards.columns import trained_on
from leaderboards.hacking import Report
from leaderboards.schema import MetricResult, Result, ResultError, Task
from leaderboards.store import write_atomically

README = "README.md"


def card_metadata(result: Result, report: Report | None = None) -> dict[str, Any]:
    """Return the metadata of a card that holds this result; `report`: what its rewards did, if it has any.

    Raises ResultError for a result that is not ranked: on a hub nobody reads the reason beside the number."""
    from huggingface_hub import ModelCardData

    if result.kind != "measured" or result.status != "ranked":
        kind = "reported by a paper" if result.kind == "reported" else result.status
        raise ResultError(f"{result.model.name}: is {kind}; only ranked measured results belong on a model card")
    entries = list(_entries(result, report))
    if not entries:
        raise ResultError(f"{result.model.name}: has no value to state on a model card")
    card = ModelCardData(
        model_name=result.model.name,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "fewstep-bench"],
        eval_results=entries,
    )
    metadata: dict[str, Any] = card.to_dict()
    return metadata


def write_card(result: Result, folder: Path, report: Report | None = None) -> Path:
    """Put the results into `<folder>/README.md`, new or existing; return its path.

    Raises ResultError as `card_metadata` does, and for a README whose metadata cannot be read."""
    path = folder / README
    folder.mkdir(parents=True, exist_ok=True)
    readme = path.read_bytes() if path.is_file() else b""
    write_atomically(path, card_text(result, readme, report).encode())
    return path


def card_text(result: Result, readme: bytes = b"", report: Report | None = None) -> str:
    """Return a README with the results in its metadata, checked by reading it back with huggingface_hub's parser.

    An older block of results is replaced; every other key and the text stay."""
    import yaml
    from huggingface_hub import ModelCard, metadata_load, metadata_save

    metadata = card_metadata(result, report)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / README
        path.write_bytes(readme)
        try:
            present = metadata_load(path) or {}
        except (ValueError, yaml.YAMLError) as error:
            raise ResultError(f"{README}: its metadata is not valid YAML; mend it first") from error
        index = metadata["model-index"]
        tags = [*present.get("tags", []), *metadata.pop("tags")]
        metadata_save(path, {**metadata, **present, "tags": list(dict.fromkeys(tags)), "model-index": index})
        text = path.read_text(encoding="utf-8")
    read_back = getattr(ModelCard(text).data, "eval_results", None)  # CardData's own type does not name it
    if read_back is None or len(read_back) != len(list(_values(result))):
        raise ResultError(f"{result.model.name}: its results do not survive huggingface_hub's parser")
    return text


def _values(result: Result) -> Iterator[tuple[Task, str, MetricResult]]:
    for task in result.tasks:
        for name, metric in task.metrics.items():
            if metric.value is not None:
                yield task, name, metric


def _entries(result: Result, report: Report | None) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    for task, name, metric in _values(result):
        rewarded = trained_on(result, name)
        yield EvalResult(
            task_type="text-to-image",
            task_name="Text-to-image generation",
            dataset_type=task.prompt_set,
            dataset_name=f"{task.prompt_set} ({task.n_prompts} prompts × {task.images_per_prompt})",
            dataset_config=f"fewstep-bench suite {result.suite}",
            dataset_revision=task.prompts_digest,
            metric_type=name,
            metric_name=f"{metric.title}{' (trained on)' if rewarded else ''}",
            metric_value=metric.value,
            metric_config=metric.variant,
            metric_args={
                "version": metric.version,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "perceiver": metric.perceiver,
                "interval_95": [metric.low, metric.high],
                "prompts": metric.n_prompts,
                "images": metric.n_images,
                "trained_on": rewarded,
                **({"reward_verdict": report.verdict, "reward_verdict_against": report.against} if report else {}),
                "nfe": task.nfe,
                "protocol_sha256": task.protocol_digest,
                "evidence_sha256": result.evidence.digest if result.evidence else "",
                "weights_sha256": result.model.weights_digest,
            },
        )
