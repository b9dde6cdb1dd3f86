"""HPSv3: how much people would like a picture for its prompt, by a vision-language model that is asked to rate it.

    mu, log sigma = h(q(instruction, x, c))        q: Qwen2-VL-7B's state at <|Reward|>, h: three layers; score: mu

Source: Ma et al. 2025, arXiv:2508.03789, Sec. 4 and package hpsv3 1.0.0. The instruction is the package's, byte by
byte (hps_v3_prompt.txt, MIT licence). Precision: bfloat16 with a float32 head on a GPU, as the package; float32 on a
CPU.
Axes: B images with their prompts.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from metrics.base import Batch, Card, Features, PerImage, Rows, register
from metrics.encoders.qwen2_vl import QwenFile, QwenTokens, SmartPatches
from metrics.features import Encoder, register_encoders
from metrics.weights import manifest

NAME = "MizzenAI/HPSv3"
INSTRUCTION = Path(__file__).parent / "hps_v3_prompt.txt"


@register_encoders(NAME)
def encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"output": mu and log sigma [B, 2], "tokens": of each prompt by itself [B, 1]}."""
    weights, vocabulary = manifest("hps-v3"), manifest("qwen2-vl-7b-instruct-tokenizer")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    tokens = QwenTokens(vocabulary, INSTRUCTION)
    model = QwenFile(weights, "HPSv3.safetensors", tokens, device, dtype)
    return {
        "output": Encoder(
            reads="pair",
            forward=model.pair,
            preprocessing=SmartPatches,
            weights=weights,
            precision=str(dtype).removeprefix("torch."),
        ),
        "tokens": Encoder(reads="text", forward=tokens.counts, weights=vocabulary),
    }


@register
class HpsV3(PerImage):
    card = Card(
        id="hps_v3",
        version=1,
        title="HPS v3",
        unit="reward",
        higher_is_better=True,
        range=(-float("inf"), float("inf")),
        source="Ma et al. 2025, arXiv:2508.03789, Sec. 4; package hpsv3 1.0.0",
        description="How much people are expected to like a picture for its prompt: mu of a normal distribution, "
        "about -5 to 16. On the authors' benchmark SD2 has -0.2, SD3-M 5.3, SDXL 8.2, FLUX.1-dev 10.4.",
        differentiable=True,
        preprocessing="PIL bicubic to about 200,704 pixels, sides multiples of 28, the aspect ratio about kept; as a "
        "reward, antialiased bicubic on floats",
        comparable="Differences on one prompt set. Tables differ in their prompts: RTDMD prints 10.1 to 15.6 on "
        "HPSv3's own. bfloat16 on a GPU moves values by up to 0.02 against float32. Not with hps_v2 or hps_v21.",
        fooled_by="Glossy, detailed, well lit pictures gain, as with every model of people's choices. The "
        "instruction asks for safety and beauty beside the prompt, so a pretty picture of something else scores "
        "well.",
        long_prompts="",
        tensor_gap="The reward resizes floats (antialiased bicubic, neither rounded nor clamped), the metric 8-bit "
        "pictures by PIL: pixels differ by 0.001 of the [0, 1] scale on average and 0.16 at most, not at all where "
        "nothing is resized (python -m metrics.gap; with weights, `python -m metrics.gap hps_v3` adds the scores).",
        reported_scale="RTDMD: as here; UniRL's reward: divided by 15",
        reward_divisor=15.0,
        citation="Ma, Wu, Sun, Li: HPSv3: Towards Wide-Spectrum Human Preference Score, 2025, arXiv:2508.03789",
    )
    features = (f"{NAME}:output", f"{NAME}:tokens")

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": mu_B, "log_sigma": of the same normal distribution, "prompt_tokens"}."""
        mu_B, log_sigma_B = features[self.features[0]].unbind(dim=1)
        return {"score": mu_B, "log_sigma": log_sigma_B, "prompt_tokens": features[self.features[1]][:, 0]}
