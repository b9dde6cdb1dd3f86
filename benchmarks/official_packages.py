"""The packages image-reward and hpsv2 themselves on a list of pictures; runs in an environment of their own.

    python -m benchmarks.official_packages REQUEST.json METRIC         started by `benchmarks.official`, within tox

Imports nothing of this project: REQUEST.json says what to score, and <METRIC>.jsonl beside it takes one line for each
picture, so that what is scored stays scored. A picture on which the package fails gets the error instead.

Called is what the READMEs call, `ImageReward.score` and `hpsv2.score`, on pictures as RGB. What differs is loading:
- The parents' __init__ files of image-reward are not run: they import diffusers, datasets and CLIP for other things.
- image-reward loads a checkpoint whatever its keys are; here other keys are an error.
- hpsv2 first downloads another 4 GB model whose weights it then replaces, reads the checkpoint again at every call,
  and its wheel lacks the vocabulary, which is open_clip's.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Score = Callable[[str, list[Image.Image]], list[float]]
PACKAGES = ("image-reward", "hpsv2", "torch", "torchvision", "transformers", "timm", "numpy", "pillow")
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
# The published med_config.json: BERT base with cross-attention to ViT-L, two tokens more in the vocabulary.
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 1024,
    "add_cross_attention": True,
}


def main() -> int:
    """Score what is not scored yet; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path)
    parser.add_argument("metric")
    arguments = parser.parse_args()
    request = json.loads(arguments.request.read_text(encoding="utf-8"))
    wanted = request["metrics"][arguments.metric]
    output = arguments.request.resolve().parent / f"{arguments.metric}.jsonl"
    header = {"request": wanted, "versions": versions(), "device": device()}
    done = read_rows(output, header)
    if done is None:
        output.write_text(json.dumps(header, sort_keys=True) + "\n", encoding="utf-8")
        done = set()
    todo = [entry for entry in request["pictures"] if (entry["set"], entry["prompt_id"], entry["seed"]) not in done]
    if todo:
        score = LOADERS[wanted["package"]](wanted)
        write_rows(output, todo, score)
    return 0


def versions() -> dict[str, str]:
    """Return the versions of what scores."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the other of the two packages is not needed
    return found


def device() -> str:
    """Return where both packages run by default."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def read_rows(path: Path, header: Mapping[str, Any]) -> set[tuple[str, str, int]] | None:
    """Return the pictures that a file holds scores of; None where it was made otherwise, or is not there.

    Lines with errors, and one that a kill cut short, are dropped, from the file, too: those are tried again."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    first, *lines = content[: content.rfind(b"\n") + 1].splitlines() or [b"{}"]
    if json.loads(first) != header:
        return None
    rows = {line: row for line in lines if "score" in (row := json.loads(line))}
    path.write_bytes(b"".join(line + b"\n" for line in (first, *rows)))
    return {(row["set"], row["prompt_id"], row["seed"]) for row in rows.values()}


def write_rows(path: Path, todo: Sequence[Mapping[str, Any]], score: Score) -> None:
    """Score pictures, those of a prompt together, and add a line for each."""
    prompts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in todo:
        prompts.setdefault((entry["set"], entry["prompt_id"]), []).append(entry)
    with path.open("a", encoding="utf-8") as file:
        for done, entries in enumerate(prompts.values(), start=1):
            for entry, outcome in zip(entries, outcomes(entries, score), strict=True):
                key = {name: entry[name] for name in ("set", "prompt_id", "seed")}
                file.write(json.dumps({**key, **outcome}, sort_keys=True) + "\n")
            file.flush()
            print(f"{path.stem}: {done} of {len(prompts)} prompts", flush=True)


def outcomes(entries: Sequence[Mapping[str, Any]], score: Score) -> list[dict[str, Any]]:
    """Return {"score": …} or {"error": …} for each picture of one prompt."""
    prompt, pictures = entries[0]["prompt"], [read_picture(entry["path"]) for entry in entries]
    try:
        return [{"score": value} for value in score(prompt, pictures)]
    except (RuntimeError, ValueError) as error:  # such as hpsv2's for oblong pictures whose longer side is 224
        if len(entries) == 1:
            return [{"error": f"{type(error).__name__}: {error}".partition("\n")[0]}]
    return [outcome for entry in entries for outcome in outcomes([entry], score)]


def read_picture(path: str) -> Image.Image:
    """Return a picture as RGB: hpsv2 fails on others."""
    with Image.open(path) as image:
        return image.convert("RGB")


def load_image_reward(wanted: Mapping[str, Any]) -> Score:
    """Return ImageReward's `score`; files: checkpoint and vocabulary."""
    import torch

    home = package_folder("ImageReward")
    for name, folder in (("ImageReward", home), ("ImageReward.models", home / "models")):
        stand_in(name).__path__ = [str(folder)]
    # Gradient checkpointing, imported and never used in inference.
    stand_in("fairscale.nn.checkpoint.checkpoint_activations").checkpoint_wrapper = None  # type: ignore[attr-defined]
    # transformers moved these three between 4.27 and 4.57.
    old, new = (importlib.import_module(f"transformers.{name}") for name in ("modeling_utils", "pytorch_utils"))
    for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
        setattr(old, name, getattr(new, name))
    checkpoint, vocabulary = (Path(wanted["files"][name]).resolve() for name in ("checkpoint", "vocabulary"))
    work = Path(tempfile.mkdtemp())
    (work / "bert-base-uncased").mkdir()
    shutil.copy(vocabulary, work / "bert-base-uncased" / "vocab.txt")
    (work / "med_config.json").write_text(json.dumps(MED_CONFIG))
    os.chdir(work)  # where a folder of the name that the package asks the hub for is found first
    package = importlib.import_module("ImageReward.ImageReward")
    model = package.ImageReward(med_config=str(work / "med_config.json"), device=device()).to(device())
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    found = model.load_state_dict(state, strict=False)
    other = [name for name in (*found.missing_keys, *found.unexpected_keys) if not name.endswith("position_ids")]
    if other:
        sys.exit(f"{checkpoint}: not the weights of ImageReward ({len(other)} other keys, first {other[0]})")
    model.eval()

    @torch.no_grad()
    def score(prompt: str, pictures: list[Image.Image]) -> list[float]:
        values = model.score(prompt, pictures)
        return values if isinstance(values, list) else [values]  # of one picture, a bare number comes back

    return score


def load_hps(wanted: Mapping[str, Any]) -> Score:
    """Return hpsv2's `score`; files: checkpoint; version: "v2.0" or "v2.1"."""
    import torch

    os.environ["HPS_ROOT"] = tempfile.mkdtemp()  # a cache in the home folder, which stays empty
    stand_in("turtle").forward = None  # type: ignore[attr-defined] # imported by mistake; it asks for a display
    vocabulary = package_folder("hpsv2") / "src" / "open_clip" / VOCABULARY
    if not vocabulary.exists():
        shutil.copy(package_folder("open_clip") / VOCABULARY, vocabulary)
    package: Any = importlib.import_module("hpsv2.img_score")
    model, _, preprocess = importlib.import_module("hpsv2.src.open_clip").create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device=device(),
        light_augmentation=True,
        aug_cfg={},
        output_dict=True,
    )
    package.model_dict.update(model=model, preprocess_val=preprocess)
    package.torch = LoadsOnce(torch)

    def score(prompt: str, pictures: list[Image.Image]) -> list[float]:
        values = package.score(pictures, prompt, cp=wanted["files"]["checkpoint"], hps_version=wanted["version"])
        return [float(value) for value in values]

    return score


class LoadsOnce(types.ModuleType):
    """torch, but `load` reads each file once."""

    def __init__(self, torch: types.ModuleType) -> None:
        super().__init__("torch")
        self.real, self.load = torch, functools.cache(torch.load)

    def __getattr__(self, name: str) -> Any:
        """Return what torch has under that name."""
        return getattr(self.real, name)


LOADERS: Mapping[str, Callable[[Mapping[str, Any]], Score]] = {"image-reward": load_image_reward, "hpsv2": load_hps}


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        sys.exit(f"{name} is not installed; start it by: tox -e official -- RUN")
    return Path(found.origin).parent


def stand_in(name: str) -> types.ModuleType:
    """Return an empty module under a name and, where there are none, under those of its parents."""
    parent, _, _ = name.rpartition(".")
    if parent and parent not in sys.modules:
        stand_in(parent)
    return sys.modules.setdefault(name, types.ModuleType(name))


if __name__ == "__main__":
    sys.exit(main())
